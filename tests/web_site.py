"""An HTTP server on 127.0.0.1 that serves byte ranges and breaks connections where a test asks for it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch


@dataclass
class Site:
    """files by path; breaks: the byte at which a path's next connection ends; ranges: requested so far."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Site]:
    """Serve in a thread of this process; proxies set on this machine are bypassed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, asked = site.files.get(self.path), self.headers["Range"]
            site.ranges.append((self.path, asked))
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if body is None:
                self.send_error(404)
                return
            if asked and start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            self.wfile.write(body[start : site.breaks.pop(self.path, len(body))])

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    with patch.dict(os.environ, {"no_proxy": "127.0.0.1"}), server:
        try:
            yield site
        finally:
            server.shutdown()
