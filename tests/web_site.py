"""A server on 127.0.0.1 with ranges, whose connections break where a test says so."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch


@dataclass
class Site:
    """files: by path. breaks: by path, at which byte the next connection ends. ranges: asked for so far."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Site]:
    """Serve in a thread of this process; a proxy of this machine is passed by."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = site.files.get(self.path)
            asked = self.headers["Range"]
            site.ranges.append((self.path, asked))
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            if body is None or (asked and start >= len(body)):
                self.send_response(404 if body is None else 416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            self.wfile.write(body[start : site.breaks.pop(self.path, len(body))])

        def log_message(self, *_arguments: object) -> None:
            pass

    with (
        patch.dict(os.environ, {"no_proxy": "127.0.0.1"}),
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
    ):
        site = Site(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
