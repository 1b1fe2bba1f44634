"""Ask a URL for the bytes of a file from some place on, and tell failures that pass from those that do not.

The standard library alone: torch.hub loads this with nothing else installed.
"""

import http.client
import re
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener, url2pathname

TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""

CHUNK_BYTES = 1 << 20


class RefusedError(Exception):
    """A failure that another attempt would meet again; the text ends with the mend."""


class BrokenError(Exception):
    """A failure that another attempt may not meet."""


class StaleError(BrokenError):
    """The server has nothing that continues the bytes asked for."""


@dataclass(frozen=True)
class Answer:
    """A body that begins at byte `start` of a file of `total` bytes, None where the server does not say.

    validator: names the file's version for a later If-Range; None where the server has no such name, and for
    the rest of a file, whose version is the one asked for.
    """

    body: BufferedIOBase
    start: int
    total: int | None
    validator: str | None

    def read(self) -> bytes:
        """Return what has arrived, at most CHUNK_BYTES, nothing at the end. Raises BrokenError."""
        try:
            # read1 waits for some bytes, not for all: a break loses none that came before it.
            return self.body.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise BrokenError(f"the connection broke ({_text(error)})") from error


def open_url(url: str, offset: int = 0, validator: str | None = None) -> Answer:
    """Ask an http:, https: or file: URL for its bytes from `offset` on, if they are still that version's.

    The answer begins at `offset` or, of another version or from a server without ranges, at 0. An http: URL
    may be redirected to http: and https:, an https: URL to https: alone.

    Raises RefusedError, BrokenError, StaleError.
    """
    try:
        parts = urlsplit(url)
        allowed = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.hostname)
        _ = parts.port  # read for the error of one that is none
    except ValueError as error:
        raise RefusedError(f"not a valid URL ({error}); correct it") from error
    if not allowed:
        raise RefusedError("not an http:, https: or file: URL; correct it")
    return _open_file(parts) if parts.scheme == "file" else _open_http(url, offset, validator)


def _open_file(parts: SplitResult) -> Answer:
    if parts.netloc not in ("", "localhost"):
        raise RefusedError(f"a file: URL of another machine ({parts.netloc}); write file:///FOLDER/FILE")
    path = Path(url2pathname(parts.path))
    try:
        return Answer(path.open("rb"), 0, path.stat().st_size, None)
    except (OSError, ValueError) as error:
        raise RefusedError(f"{path} cannot be read ({_text(error)}); correct the URL") from error


def _open_http(url: str, offset: int, validator: str | None) -> Answer:
    # Some servers refuse urllib's own name.
    headers = {"User-Agent": "ssd-trainer"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    try:
        opener = build_opener(_Redirects())
        return _answer(offset, opener.open(Request(url, headers=headers), timeout=TIMEOUT_SECONDS))
    except HTTPError as error:
        with error:
            return _refused(offset, error)
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted ({error.reason.verify_message})"
            raise RefusedError(f"{reason}; mend this machine's certificates or clock") from error
        raise BrokenError(f"no connection ({_text(error.reason)})") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise RefusedError(f"not a valid URL ({error}); correct it") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenError(f"no answer ({_text(error)})") from error


def _answer(offset: int, response: http.client.HTTPResponse) -> Answer:
    if response.status == HTTPStatus.OK:
        etag = response.headers["ETag"] or ""
        # A weak ETag names contents that are alike, not equal bytes: If-Range must not carry it.
        strong = etag and not etag.startswith("W/")
        return Answer(response, 0, response.length, etag if strong else response.headers["Last-Modified"])
    response_range = response.headers["Content-Range"]
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response_range or "")
    if response.status == HTTPStatus.PARTIAL_CONTENT and span and int(span[1]) == offset:
        rest = None if response.length is None else offset + response.length
        return Answer(response, offset, rest if span[2] == "*" else int(span[2]), None)
    response.close()
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        raise StaleError(f"asked for the bytes from {offset} on, got Content-Range {response_range}")
    raise RefusedError(f"HTTP {response.status} {response.reason}; check the URL")


def _refused(offset: int, error: HTTPError) -> Answer:
    """Return an empty answer where the server says that the bytes so far are all; raise otherwise."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        if error.headers["Content-Range"] == f"bytes */{offset}":
            return Answer(BytesIO(), offset, offset, None)
        raise StaleError(f"the server has no bytes from {offset} on") from error
    reason = f"HTTP {error.code} {_text(error.reason)}"
    if error.code >= 500 or error.code in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        raise BrokenError(reason) from error
    raise RefusedError(f"{reason}; check the URL") from error


def _text(error: object) -> str:
    """Return an error's text on one line, its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class _Redirects(HTTPRedirectHandler):
    """Follows to http: and https: alone, and never from https: to less."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise HTTPError(newurl, code, f"{msg}; redirection to {newurl} is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
