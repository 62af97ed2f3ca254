"""When the next request may go out: a clock, a rate limit for all threads, and how long to wait after a failure."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


def _wait(seconds: float, stop: threading.Event) -> None:
    stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from and how it is spent, in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    """Since 1970; only to read dates that a server names."""
    sleep: Callable[[float, threading.Event], None] = _wait
    """Returns early once the event is set."""


SYSTEM_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class Retries:
    """Exponential back-off with jitter."""

    attempts: int
    """Requests in all, the first included."""
    backoff: float
    """Seconds of the first wait, before jitter; each further one is twice as long."""
    max_wait: float
    """Seconds; no wait is longer."""

    def wait(self, attempt: int, seed: str) -> float:
        """Return the seconds to wait after the failed ``attempt`` (1, 2, ...): half of it certain, half of it drawn.

        Equal seeds give equal waits; requests have different ones, so that they do not come back all at once.
        """
        longest = min(self.max_wait, self.backoff * 2.0 ** min(attempt - 1, 60))
        return longest * (1 + random.Random(f"{seed}/{attempt}").random()) / 2


class Pace:
    """A gate that opens at most so many times a second, for all threads together."""

    def __init__(self, requests_per_second: float | None, clock: Clock) -> None:
        self._interval = 0.0 if requests_per_second is None else 1 / requests_per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._opens = clock.monotonic()

    def pass_through(self, stop: threading.Event) -> None:
        """Return once the caller may send, or ``stop`` is set."""
        while not stop.is_set() and (seconds := self._closed_for()) > 0:
            self._clock.sleep(seconds, stop)

    def close(self, seconds: float) -> None:
        """Keep the gate closed for ``seconds`` from now, for everybody: the server asked for it."""
        with self._lock:
            self._opens = max(self._opens, self._clock.monotonic() + seconds)

    def _closed_for(self) -> float:
        """Return 0 and take the turn, or the seconds until the next one."""
        with self._lock:
            now = self._clock.monotonic()
            if now < self._opens:
                return self._opens - now
            self._opens = now + self._interval
            return 0.0


def asked_wait(value: str | None, now: float) -> float:
    """Return the seconds of a ``Retry-After`` header: a number or a date (RFC 9110, section 10.2.3); 0 for neither.

    Args:
        value: the header.
        now: seconds since 1970.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, until - now)
