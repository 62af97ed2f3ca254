"""Requests to one address, paced, tried again, with a deadline over each whole exchange; and the scores kept of them.

The connection is that of ``httpx2``, which the hub's own client brings along.
"""

import asyncio
import json
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dualign.errors import ConfigError, DataError, MissingError, inert
from dualign.runs.store import read_json, write_json
from dualign.strict import parse_json

if TYPE_CHECKING:
    import httpx2


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


# Upper case alone: that is how variables are named, and how the keys of the known services are not.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
KEY = re.compile(r"[\x21-\x7e]+")


def check_url(url: str) -> None:
    """Check an address. No message repeats it: where it holds a password, that must not reach a log.

    Raises:
        ValueError: it is not http or https, names no host, or holds a password, a fragment or a blank.
    """
    if not KEY.fullmatch(url):
        raise ValueError("url: blanks and characters outside ASCII must be written as %XX")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"url: scheme {parts.scheme!r}; http:// or https:// is needed")
    if not host:
        raise ValueError("url: names no host; such as https://judge.example.org/score")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: holds a user name or password; keep the key in an environment variable, see key_from")
    if parts.fragment:
        raise ValueError("url: has a fragment (#...), which no server gets to see")


def display_name(url: str) -> str:
    """Return host, port and path of an address, for people."""
    parts = urlsplit(url)
    return parts.netloc + parts.path.rstrip("/")


def read_key(variable: str | None, scorer: str) -> str | None:
    """Return the key that the environment variable holds, or none where no variable is named.

    Raises:
        MissingError: there is no such variable, or it is empty.
        ConfigError: what it holds cannot be sent in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise MissingError(f"scorer {scorer}: environment variable {variable} is not set; it must hold the key")
    if not KEY.fullmatch(key):
        raise ConfigError(f"scorer {scorer}: the key in {variable} holds blanks or characters outside ASCII")
    return key


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from and how it is spent, in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    """Since 1970; only to read dates that a server names."""
    sleep: Callable[[float, threading.Event], object] = lambda seconds, stop: stop.wait(seconds)
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


MAX_BYTES = 1 << 24
"""No honest answer is longer; a larger one would only fill the memory."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sent back, of any status."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


Transport = Callable[[bytes, Mapping[str, str]], Answer]
"""(content, headers) -> answer; raises ``TransientFault`` or ``FinalFault``."""


def transport(url: str, *, timeout: float) -> Transport:
    """Return what posts to ``url`` and gives up after ``timeout`` seconds, however slowly headers or body drip in.

    Redirects are not followed, so a key never travels to another host. Proxies are those of the environment.

    Raises:
        ConfigError: no request can be made of the address, or through the proxy.
    """
    import httpx2

    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"url: {inert(error)}") from None
    settings: dict[str, Any] = {
        "verify": httpx2.create_ssl_context(),
        "proxy": _proxy(url),
        "trust_env": False,
        "timeout": None,
    }
    try:
        httpx2.AsyncClient(**settings)
    except (httpx2.InvalidURL, ValueError, ImportError) as error:
        # Its address may hold a password, and is not repeated.
        reason = inert(error) if isinstance(error, ImportError) else type(error).__name__
        raise ConfigError(f"the proxy that the environment names for {display_name(url)}: {reason}") from None

    async def exchange(content: bytes, headers: Mapping[str, str]) -> Answer:
        # One deadline for all of it, which httpx does not know: its own are for each piece that arrives.
        async with (
            asyncio.timeout(timeout),
            httpx2.AsyncClient(**settings) as client,
            client.stream("POST", address, content=content, headers=headers) as response,
        ):
            return Answer(response.status_code, dict(response.headers), await _body(response))

    def post(content: bytes, headers: Mapping[str, str]) -> Answer:
        try:
            return asyncio.run(exchange(content, headers))
        except (OSError, httpx2.HTTPError) as error:
            raise _fault(error, timeout) from error

    return post


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address (``http_proxy``, ``https_proxy``, ``no_proxy``)."""
    parts = urlsplit(url)
    named = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return named if named is None or "://" in named else f"http://{named}"


async def _body(response: "httpx2.Response") -> bytes:
    import httpx2

    body = bytearray()
    try:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MAX_BYTES:
                raise FinalFault(f"the answer is longer than {MAX_BYTES} bytes")
    except httpx2.TransportError as error:
        announced = response.headers.get("content-length", "?")
        raise TransientFault(f"the answer broke off after {len(body)} of {announced[:20]} bytes") from error
    return bytes(body)


def _fault(error: Exception, timeout: float) -> TransientFault | FinalFault:
    """Return the fault that an error of the network stands for."""
    if isinstance(error, TimeoutError):
        return TransientFault(f"no answer within {timeout:g} s")
    # What the system says lies below what the libraries make of it.
    system = next((cause for cause in _causes(error) if isinstance(cause, OSError) and cause.errno), None)
    if isinstance(system, ssl.SSLCertVerificationError):
        return FinalFault(f"the certificate cannot be verified ({system.verify_message})")
    text = str(system or error) or type(error).__name__
    if system is not None and not isinstance(system, ssl.SSLError | socket.gaierror):
        text = os.strerror(system.errno or 0)
    return TransientFault(f"no answer ({inert(text.splitlines()[0])})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that led to it."""
    while error is not None:
        yield error
        several = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        error = several[0] if several else error.__cause__ or error.__context__


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
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Idempotency-Key": request_id,
        }
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


@dataclass(frozen=True, slots=True)
class ScoreCache:
    """A folder of scores by row id. It holds hashes and numbers alone, no text."""

    folder: Path

    def read(self, ids: Iterable[str]) -> dict[str, float]:
        """Return the scores that are there.

        Raises:
            DataError: a file is not what was written.
        """
        return {id: self._score(path, id) for id in ids if (path := self._path(id)).exists()}

    def write(self, scores: Mapping[str, float]) -> None:
        """Keep ``scores``; each is on the disk once this returns.

        Raises:
            StorageError: the disk refused.
        """
        for id, score in scores.items():
            write_json(self._path(id), {"id": id, "score": score})

    def _path(self, id: str) -> Path:
        # Two letters of folder: a hundred thousand files in one are slow on some systems.
        return self.folder / id[:2] / f"{id}.json"

    def _score(self, path: Path, id: str) -> float:
        entry = read_json(path)
        score = entry.get("score") if isinstance(entry, dict) and entry.get("id") == id else None
        if not isinstance(score, float) or not math.isfinite(score):
            raise DataError(f"{path}: damaged: not the kept score of a row; delete the file, and the row is sent again")
        return score


def default_folder() -> Path:
    """Return where scores are kept unless the config says otherwise: ``dualign/scores`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dualign" / "scores"
