"""A server on 127.0.0.1 that serves files as a good one does, and misbehaves as it is told to."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch


class Request(BaseHTTPRequestHandler):
    """One GET: what the site has been told to do with it, or the file with ETag and ranges."""

    server: "_Server"

    def do_GET(self) -> None:
        site = self.server.site
        site.requests.append((self.path, self.headers))
        answers = site.answers.get(self.path, [])
        body = site.files.get(self.path)
        if answers:
            (answers[0] if len(answers) == 1 and site.forever else answers.pop(0))(self, body or b"")
        elif body is None:
            self.begin(404, {"Content-Length": "0"})
        else:
            serve(self, body)

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


Answer = Callable[[Request, bytes], None]


@dataclass
class Site:
    """files: by path. answers: by path, what the next requests get; the last one for ever if `forever`."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    forever: bool = False
    requests: list[tuple[str, Message]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        """The Range header of each request so far."""
        return [headers["Range"] for _, headers in self.requests]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site


@contextmanager
def serving() -> Iterator[Site]:
    """Serve in a thread of this process; a proxy of this machine is passed by."""
    environment = patch.dict(os.environ, {"no_proxy": "127.0.0.1"})
    with environment, _Server(("127.0.0.1", 0), Request) as server:
        server.site = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.site
        finally:
            server.shutdown()
            thread.join()


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def serve(request: Request, body: bytes) -> None:
    """Answer as RFC 9110 has it."""
    serve_until(len(body))(request, body)


def serve_until(end: int, validators: bool = True) -> Answer:
    """As `serve`, but the connection breaks before that byte of the file."""

    def answer(request: Request, body: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers["Range"] or "")
        same = request.headers["If-Range"] in (None, etag(body))
        start = int(asked[1]) if asked and same else 0
        headers = {"ETag": etag(body)} if validators else {}
        if start >= len(body) and start:
            request.begin(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        request.begin(206 if start else 200, headers | {"Content-Length": str(len(body) - start)})
        request.wfile.write(body[start : max(start, end)])

    return answer


@contextmanager
def pausing_after(end: int) -> Iterator[Answer]:
    """As `serve`, but nothing comes after that byte until the context is left."""
    over = threading.Event()

    def answer(request: Request, body: bytes) -> None:
        serve_until(end)(request, body)
        over.wait()

    try:
        yield answer
    finally:
        over.set()


def whole(request: Request, body: bytes) -> None:
    """Answer as a server that knows neither ranges nor versions."""
    request.begin(200, {"Content-Length": str(len(body))})
    request.wfile.write(body)


def status(code: int, **headers: str) -> Answer:
    """Answer with a status and headers (underscores stand for hyphens) and nothing else."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, _body: request.begin(code, {"Content-Length": "0"} | named)


def claiming(length: int, code: int = 200, **headers: str) -> Answer:
    """Send the whole body under a Content-Length of our choice."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def answer(request: Request, body: bytes) -> None:
        request.begin(code, {"Content-Length": str(length)} | named)
        request.wfile.write(body)

    return answer


def without_length(request: Request, body: bytes) -> None:
    """Send the body and close: its end is all that says how long it is."""
    request.begin(200, {})
    request.wfile.write(body)
