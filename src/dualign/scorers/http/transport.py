"""One POST and its answer, over the standard library; whatever the network does to it is a ``TransientFault``."""

import http.client
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dualign.scorers.http.deadline import TimedHTTP, TimedHTTPS
from dualign.scorers.http.faults import FinalFault, TransientFault

MAX_BYTES = 1 << 24
"""No honest answer is longer; a larger one would only fill the memory."""
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sent back, of any status."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


Transport = Callable[[bytes, Mapping[str, str]], Answer]
"""(content, headers) -> answer; raises ``TransientFault`` or ``FinalFault``."""


def transport(url: str, *, timeout: float, monotonic: Callable[[], float]) -> Transport:
    """Return what posts to ``url`` and gives up after ``timeout`` seconds, however slowly headers or body drip in.

    Redirects are not followed, so a key never travels to another host. Proxies are those of the environment.
    """
    opener = urllib.request.OpenerDirector()
    # Without the handlers for redirects, errors, files and FTP: every status comes back as an answer.
    for handler in (urllib.request.ProxyHandler(), TimedHTTP(monotonic), TimedHTTPS(monotonic)):
        opener.add_handler(handler)

    def post(content: bytes, headers: Mapping[str, str]) -> Answer:
        request = urllib.request.Request(url, content, dict(headers), method="POST")
        try:
            with opener.open(request, timeout=timeout) as response:
                return _read(response)
        except (OSError, http.client.HTTPException) as error:
            raise _fault(error, timeout) from error

    return post


def _read(response: http.client.HTTPResponse) -> Answer:
    pieces, size = [], 0
    while piece := response.read1(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise FinalFault(f"the answer is longer than {MAX_BYTES} bytes")
    headers = {name.lower(): value for name, value in response.getheaders()}
    announced = headers.get("content-length", "")
    # Compared as texts: what is a digit for Python need not be one for int(), and a length may be too long for it.
    if announced.isascii() and announced.isdigit() and (announced.lstrip("0") or "0") != str(size):
        raise TransientFault(f"the answer broke off after {size} of {announced[:20]} bytes")
    return Answer(response.status, headers, b"".join(pieces))


def _fault(error: Exception, timeout: float) -> TransientFault | FinalFault:
    """Return the fault that an error of the network stands for."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return TransientFault(f"no answer within {timeout:g} s")
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FinalFault(f"the certificate cannot be verified ({reason.verify_message})")
    text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return TransientFault(f"no answer ({text})")
