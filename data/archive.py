"""Unpack a zip archive that nobody has to trust."""

import errno
import hashlib
import stat
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ssd.errors import UserError

CHUNK_BYTES = 1 << 20

LOCAL_HEADER_BYTES = 30
"""Of a member's header in front of its bytes, names aside (APPNOTE 4.3.7)."""

# What zipfile raises over damaged archives, found by damaging some; it documents only the first.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError)


class ArchiveError(UserError):
    """Which archive was refused, over which member and why."""


@dataclass(frozen=True)
class Limits:
    """The most an archive may hold: members, unpacked bytes of one file, unpacked bytes of all."""

    members: int
    file_bytes: int
    total_bytes: int


def unpack(
    archive: Path, prefix: str, folder: Path, limits: Limits, report: Callable[[int, int], None]
) -> dict[str, str]:
    """Write the files PREFIX/NAME of a zip archive to FOLDER/NAME; return their sha256 by NAME.

    The folder must exist and be empty. `report` gets the bytes written and those that the archive announces.

    Before anything is written ArchiveError refuses every archive with a member that is not a plain file right
    under PREFIX/ (absolute, `..`, elsewhere, link, device, encrypted, a name twice), with members that share
    bytes, or that announces more than the limits; while writing, bytes unlike the announced size or CRC.
    What was written by then stays: the folder is the caller's to throw away.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, prefix, limits)
            total = sum(member.file_size for member in members)
            sums: dict[str, str] = {}
            written = 0
            for member in members:
                name = Path(member.filename).name
                sums[name] = _write(opened, member, folder / name)
                written += member.file_size
                report(written, total)
            return sums
    except _RefusedError as error:
        raise ArchiveError(f"{archive}: {error}; get the archive from another source") from error
    except DAMAGED as error:
        reason = f"not a whole zip archive ({str(error) or type(error).__name__})"
        raise ArchiveError(f"{archive}: {reason}; delete it and get it again") from error
    except OSError as error:
        mend = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise ArchiveError(
            f"cannot unpack {archive} to {folder} ({error.strerror}); {mend} and run again"
        ) from error


class _RefusedError(Exception):
    """Why an archive is not taken."""


def _members(opened: zipfile.ZipFile, prefix: str, limits: Limits) -> list[zipfile.ZipInfo]:
    """Return the files of an archive of which every member is allowed."""
    members = opened.infolist()
    if len(members) > limits.members:
        raise _RefusedError(f"{len(members)} members, at most {limits.members} are allowed")
    for member in members:
        _check_name(member, prefix)
        _check_kind(member)
    files = [member for member in members if not _is_folder(member)]
    if not files:
        raise _RefusedError("it holds no files")
    # Compared as file systems that ignore case would: two such names were one file there.
    names = sorted(member.filename.casefold() for member in files)
    for name, following in pairwise(names):
        if name == following:
            raise _RefusedError(f"two members are named {name!r}")
    _check_overlaps(members, opened.start_dir)
    largest = max(files, key=lambda member: member.file_size)
    for what, size, most in (
        (f"{largest.filename!r}", largest.file_size, limits.file_bytes),
        ("it", sum(member.file_size for member in files), limits.total_bytes),
    ):
        if size > most:
            raise _RefusedError(f"{what} unpacks to {size} bytes, at most {most} are allowed")
    return files


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith("/")  # zipfile's is_dir dies of an empty name


def _check_kind(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on a Unix
    if kind not in (0, stat.S_IFDIR if _is_folder(member) else stat.S_IFREG):
        raise _RefusedError(f"{member.filename!r} is a link or a device, not a file")
    if member.flag_bits & 1:
        raise _RefusedError(f"{member.filename!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _RefusedError(f"{member.filename!r} is compressed in an unusual way ({member.compress_type})")


def _check_name(member: zipfile.ZipInfo, prefix: str) -> None:
    # The original name: zipfile cuts its own at a zero byte.
    folder, _, name = member.orig_filename.partition("/")
    inside = folder == prefix and "/" not in name and name not in (".", "..") and (name or _is_folder(member))
    if not inside or "\\" in name or not name.isprintable():
        raise _RefusedError(f"{member.orig_filename!r} is not a file right under {prefix}/")


def _check_overlaps(members: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that share bytes: a few megabytes of them unpack to terabytes (Fifield, WOOT 2019)."""
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        if member.header_offset + LOCAL_HEADER_BYTES + member.compress_size > end:
            raise _RefusedError(f"{member.filename!r} overlaps what follows it")
        end = member.header_offset
    if end < 0:
        raise _RefusedError("a member begins in front of it")


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """Write one member, no byte more than its header announced; return its sha256."""
    digest = hashlib.sha256()
    written = 0
    with opened.open(member) as source, path.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > member.file_size:
                break
            file.write(chunk)
            digest.update(chunk)
    if written != member.file_size:
        raise _RefusedError(
            f"{member.filename!r} does not have the {member.file_size} bytes that its header says"
        )
    return digest.hexdigest()
