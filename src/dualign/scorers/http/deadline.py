"""HTTP exchanges that end in time: every read waits for what is left until one moment, and never starts anew.

The standard library's timeout is for each read alone, so that a server which sends a byte at a time is never left.
"""

import functools
import http.client
import io
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

Monotonic = Callable[[], float]


class _TimedReader(io.RawIOBase):
    """What a connection brings, until no seconds are left."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, seconds_left: Callable[[], float]) -> None:
        self._raw, self._connection, self._seconds_left = raw, connection, seconds_left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        seconds = self._seconds_left()
        if seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(seconds)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """An answer whose status, headers and body are read through a ``_TimedReader``."""

    def __init__(self, sock: socket.socket, *arguments: Any, seconds_left: Callable[[], float], **settings: Any):
        super().__init__(sock, *arguments, **settings)
        self.fp: Any = io.BufferedReader(_TimedReader(self.fp.detach(), sock, seconds_left))


class _TimedHandler(urllib.request.AbstractHTTPHandler):
    def __init__(self, monotonic: Monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic

    def do_open(self, http_class: Any, req: urllib.request.Request, **settings: Any) -> Any:
        def connection(host: str, *, timeout: float, **more: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(host, timeout=timeout, **more)
            end = self._monotonic() + timeout
            timed: Any = functools.partial(_TimedResponse, seconds_left=lambda: end - self._monotonic())
            made.response_class = timed
            return made

        opened: Any = connection
        return super().do_open(opened, req, **settings)


class TimedHTTP(_TimedHandler, urllib.request.HTTPHandler):
    """Opens ``http://``; the request's timeout is for the whole answer."""


class TimedHTTPS(_TimedHandler, urllib.request.HTTPSHandler):
    """Opens ``https://``; the request's timeout is for the whole answer."""
