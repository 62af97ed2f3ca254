"""What goes wrong with one request: either worth another attempt, or not."""


class TransientFault(Exception):
    """The next attempt may succeed: no connection, an overloaded server, an answer that cannot be used."""

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds that the server asked to be left alone; 0 where it asked for nothing."""


class FinalFault(Exception):
    """The same request would fail again: a wrong address, a refused key, a redirect."""


class Stopped(Exception):
    """Nothing was wrong with this request: another one failed for good, and this one was not sent."""
