"""A scoring service on the loopback address: honest, except for the faults that a test puts into its script."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def true_score(response: str) -> float:
    """Return what the honest service answers."""
    return len(response) / 4


@dataclass
class Service:
    """What the service got, and what it does next."""

    script: list[Fault] = field(default_factory=list)
    """One fault a request; once used up, the service is honest."""
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    """(path, headers, body) in order of arrival."""
    honest: list[str] = field(default_factory=list)
    """Ids of the rows that were answered with their true score, again for each time."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Event = field(default_factory=threading.Event)
    """Set at the end: faults that hang wait for it."""

    @property
    def asked(self) -> list[list[str]]:
        """Return the responses of each request."""
        return [[item["response"] for item in body["items"]] for _, _, body in self.requests]


def answer(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def true_items(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"id": item["id"], "score": true_score(item["response"])} for item in body["items"]]


def answers_json(change: Callable[[list[dict[str, Any]]], Any]) -> Fault:
    """Return the fault of answering with ``change`` applied to the true items."""

    def fault(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        answer(handler, 200, json.dumps(change(true_items(body))).encode())

    return fault


def answers_status(status: int, content: bytes = b"", **headers: str) -> Fault:
    """Return the fault of answering with a status."""
    return lambda handler, body: answer(handler, status, content, **headers)


def _honest(service: Service, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    if "messages" in body:
        content = json.dumps({"reason": "by length", "score": true_score(body["messages"][-1]["content"])})
        reply: dict[str, Any] = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    else:
        reply = {"items": true_items(body)}
        with service.lock:
            service.honest += [item["id"] for item in body["items"]]
    answer(handler, 200, json.dumps(reply).encode())


@contextmanager
def serving(*script: Fault) -> Iterator[Service]:
    """Run a service with this script until the block ends."""
    service = Service(list(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with service.lock:
                service.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                fault = service.script.pop(0) if service.script else None
            try:
                _honest(service, self, body) if fault is None else fault(self, body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client gave up, as some tests want it to

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        service.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
