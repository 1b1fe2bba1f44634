"""Fetch a file by URL: resumed, retried, checked and moved into place whole.

The standard library and filelock (torch requires it) alone: torch.hub loads this with nothing else installed.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from .errors import UserError
from .url import Answer, BrokenError, RefusedError, StaleError, open_url

BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits between attempts that bring nothing new; one that does starts the list again."""

Report = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes of the whole, None where the server does not say."""


class DownloadError(UserError):
    """Which URL could not be fetched, why, and what mends it."""


@dataclass(frozen=True)
class _Wanted:
    """What is asked for: size in bytes and sha256 where the caller knows them."""

    url: str
    size: int | None
    sha256: str | None

    def error(self, reason: str) -> DownloadError:
        return DownloadError(f"cannot download {self.url}: {reason}")


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    report: Report | None = None,
) -> None:
    """Fetch an http:, https: or file: URL into the file `target`, unless that is there already.

    What came so far lies in TARGET.part. A later attempt, of this call or the next, fetches the rest if the
    server vouches that the file is the same one (ETag, Last-Modified) or a sha256 is given to tell. Broken
    connections, timeouts and 5xx are tried again after a while. The target appears whole or not at all, and
    any number of processes may ask for it at once: one fetches, the others wait.

    Raises DownloadError for a URL that cannot be fetched, for other bytes than the server's length, `size` or
    `sha256` (lower-case hex) says, and where the disk refuses.
    """
    if target.is_file():
        return
    wanted = _Wanted(url, size, sha256)
    lock = target.with_name(f"{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not target.is_file():
                part = _Part(target)
                _fetch(wanted, part, report or (lambda _here, _total: None))
                _check(wanted, part)
                part.move(target)
            # Whoever still waits for this very lock finds the target: none downloads beside another.
            lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"no space left for {target}; free some and run again, what came so far is kept"
        else:
            reason = f"{target} cannot be written ({error.strerror}); name a place that can be"
        raise wanted.error(reason) from error


def _fetch(wanted: _Wanted, part: "_Part", report: Report) -> None:
    """Attempt until all is there, or until one attempt more than there are waits brought nothing new."""
    most, failures = part.size, 0
    while True:
        try:
            return _attempt(wanted, part, report)
        except RefusedError as error:
            raise wanted.error(str(error)) from error
        except BrokenError as error:
            failures = 1 if part.size > most else failures + 1
            most = max(most, part.size)
            if failures > len(BACKOFF_SECONDS):
                reason = f"{error}, {failures} times in a row; try again later, what came so far is kept"
                raise wanted.error(reason) from error
        time.sleep(BACKOFF_SECONDS[failures - 1])


def _attempt(wanted: _Wanted, part: "_Part", report: Report) -> None:
    """Add to the part what is missing."""
    validator = part.validator(wanted.url)
    # Where the server names no version the file may have changed: without a checksum nobody would notice.
    offset = part.size if validator or wanted.sha256 else 0
    if offset and offset == wanted.size:
        return
    try:
        answer = open_url(wanted.url, offset, validator)
    except StaleError:
        part.remove()
        raise
    with closing(answer.body):
        if wanted.size is not None and answer.total not in (None, wanted.size):
            raise RefusedError(f"the server has {answer.total} bytes, not {wanted.size}; name another source")
        if answer.start == 0:
            part.start_over(wanted.url, answer.validator)
        _receive(answer, part, wanted.size if answer.total is None else answer.total, report)


def _receive(answer: Answer, part: "_Part", total: int | None, report: Report) -> None:
    here = answer.start
    with part.path.open("ab") as file:
        report(here, total)
        while chunk := answer.read():
            here += len(chunk)
            if total is not None and here > total:
                break
            file.write(chunk)
            report(here, total)
    if total is not None and here > total:
        part.remove()
        raise RefusedError(f"more than the {total} bytes expected came; name another source")
    if total is not None and here < total:
        raise BrokenError(f"the connection ended after {here} of {total} bytes")


def _check(wanted: _Wanted, part: "_Part") -> None:
    if wanted.sha256 is None:
        return
    with part.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != wanted.sha256:
        part.remove()
        reason = f"its sha256 is {sha256}, expected {wanted.sha256}"
        raise wanted.error(f"{reason}; the bytes were discarded: run again or name another source")


class _Part:
    """TARGET.part with the bytes so far; TARGET.part.json says which URL and version they are of."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._origin = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def validator(self, url: str) -> str | None:
        """Return the version at this URL that the bytes are of, None where nothing says so."""
        try:
            origin = json.loads(self._origin.read_text())
            return str(origin["validator"]) if origin["url"] == url else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def start_over(self, url: str, validator: str | None) -> None:
        # In this order: a kill in between must not leave old bytes under a new version.
        self.remove()
        self.path.touch()
        if validator is not None:
            self._origin.write_text(json.dumps({"url": url, "validator": validator}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def move(self, target: Path) -> None:
        """Put the bytes where the target shall be, on the disk before under the name."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._origin.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
