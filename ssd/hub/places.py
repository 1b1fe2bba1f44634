"""Where something lies, as people write it: a path, a file: URL or a http(s) URL."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..errors import UserError

Place = str | os.PathLike[str]


def is_url(place: Place) -> bool:
    """Tell a URL from a path; a colon alone makes none, since paths may have one."""
    text = os.fspath(place)
    return "://" in text or text.lower().startswith("file:")


def local_file(place: Place) -> Path | None:
    """Return the path that a path (~ is one's home) or a file: URL names, None for a http(s) URL.

    Raises UserError for another kind of URL and for a file: URL of another machine, not for a missing file.
    """
    text = os.fspath(place)
    if not is_url(text):
        return Path(os.path.expanduser(text))  # Path.expanduser fails on a file called ~x
    url = urlsplit(text)
    if url.scheme in ("http", "https"):
        return None
    if url.scheme != "file":
        raise UserError(
            f"{text}: a URL of kind {url.scheme}: can't be read; give http:, https:, file: or a path"
        )
    if url.netloc not in ("", "localhost"):
        raise UserError(f"{text} names a file of the machine {url.netloc}; of this one it is file:///…")
    return Path(url2pathname(url.path))
