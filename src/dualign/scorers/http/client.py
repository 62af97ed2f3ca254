"""A request that is repeated until its answer can be used, or until there is no use in repeating it."""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from dualign.scorers.http.faults import FinalFault, Stopped, TransientFault
from dualign.scorers.http.pacing import Clock, Pace, Retries, asked_wait
from dualign.scorers.http.transport import Answer, Transport
from dualign.strict import parse_json

Result = TypeVar("Result")
TEMPORARY = frozenset({408, 425, 429})
"""Besides all of 5xx."""
EXCERPT = 120
"""Characters of a server's own words in a message."""


@dataclass(frozen=True, slots=True)
class Client:
    """Sends requests to one address."""

    transport: Transport
    retries: Retries
    pace: Pace
    clock: Clock
    key: str | None = field(default=None, repr=False)

    def ask(
        self, body: Mapping[str, Any], *, request_id: str, read: Callable[[Any], Result], stop: threading.Event
    ) -> Result:
        """Return what ``read`` makes of the JSON value that the server answers ``body`` with.

        Args:
            body: sent as JSON.
            request_id: the same for every attempt, and sent as ``Idempotency-Key``: a server that knows it can
                repeat its answer instead of its work. It seeds the jitter too.
            read: raises ``TransientFault`` for an answer that has another form than agreed.
            stop: once set, no further attempt begins.

        Raises:
            FinalFault: no attempt brought an answer that can be used, or another attempt is useless.
            Stopped: ``stop`` was set.
        """
        content = json.dumps(body, allow_nan=False).encode()
        for attempt in range(1, self.retries.attempts + 1):
            self.pace.pass_through(stop)
            if stop.is_set():
                raise Stopped
            try:
                return read(self._parsed(self.transport(content, self._headers(request_id))))
            except TransientFault as fault:
                last = fault
            if attempt < self.retries.attempts:
                self._wait(last, attempt, request_id, stop)
        raise FinalFault(f"{last}, {self.retries.attempts} attempts") from last

    def _headers(self, request_id: str) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Idempotency-Key": request_id}
        return headers if self.key is None else {**headers, "Authorization": f"Bearer {self.key}"}

    def _wait(self, fault: TransientFault, attempt: int, request_id: str, stop: threading.Event) -> None:
        if fault.wait > self.retries.max_wait:
            raise FinalFault(
                f"{fault}; the server asks for {fault.wait:.0f} s of rest, above max_wait {self.retries.max_wait:g}"
            ) from fault
        if fault.wait:
            self.pace.close(fault.wait)
        self.clock.sleep(max(fault.wait, self.retries.wait(attempt, request_id)), stop)

    def _parsed(self, answer: Answer) -> Any:
        """Return the JSON value of an answer with a good status."""
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        try:
            return parse_json(answer.body.decode())
        except ValueError as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise TransientFault(f"the answer is not JSON ({reason}){self._excerpt(answer.body)}") from None

    def _refusal(self, answer: Answer) -> TransientFault | FinalFault:
        """Return the fault that a status outside 2xx stands for."""
        name = f"HTTP {answer.status}"
        if answer.status in set(HTTPStatus):
            name += f" {HTTPStatus(answer.status).phrase}"
        if answer.status in TEMPORARY or answer.status >= 500:
            wait = asked_wait(answer.headers.get("retry-after"), self.clock.wall())
            return TransientFault(name + self._excerpt(answer.body), wait=wait)
        if 300 <= answer.status < 400:
            return FinalFault(f"{name}: redirects are not followed; give the final address as url")
        mend = "; the key is that of the variable that key_from names" if answer.status in (401, 403) else ""
        return FinalFault(name + self._excerpt(answer.body) + mend)

    def _excerpt(self, body: bytes) -> str:
        """Return the start of a server's words on one line, without control characters and without the key."""
        text = body.decode(errors="replace")
        if self.key is not None:
            text = text.replace(self.key, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 16 * EXCERPT]).split())
        return f": {text[:EXCERPT]}" if text else ""
