"""Named arrays in one file that is mapped, not read, and that shows when it is damaged.

Prefix (magic, checksum of all that follows the checksum, length of the header), header (json), arrays.
"""

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

_MAGIC = b"ssdarray"
_PREFIX = struct.Struct("<8sII")
_CHECKED_FROM = 12
_ALIGNMENT = 64  # of each array in the file: a cache line


class _Place(msgspec.Struct):
    """Which bytes after the header an array is; dtype is NumPy's text for it, as in "<i8"."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class _Header(msgspec.Struct):
    """about: plain values of the caller's."""

    about: dict[str, Any]
    arrays: dict[str, _Place]


def write_arrays(path: Path, about: dict[str, Any], arrays: Arrays) -> None:
    """Write plain values and arrays so that the path holds them whole or what it held before.

    Raises OSError where the disk or the folder fails; nothing is left behind then.
    """
    pieces = _pieces(about, arrays)
    header_size = len(pieces[0])
    checksum = zlib.crc32(struct.pack("<I", header_size))
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_PREFIX.pack(_MAGIC, checksum, header_size))
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def map_arrays(path: Path) -> tuple[dict[str, Any], Arrays] | None:
    """Return what was written, the arrays read-only in mapped memory; None for no file or a damaged one.

    Raises OSError where there is a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < _PREFIX.size:
                return None
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    magic, checksum, header_size = _PREFIX.unpack_from(content)
    # Of all bytes, since what was damaged must not become wrong boxes; it checks gigabytes a second.
    if magic != _MAGIC or checksum != zlib.crc32(memoryview(content)[_CHECKED_FROM:]):
        return None
    body_start = _PREFIX.size + header_size
    header = msgspec.json.decode(content[_PREFIX.size : body_start], type=_Header)
    arrays: Arrays = {
        name: np.ndarray(place.shape, place.dtype, content, body_start + place.start)
        for name, place in header.arrays.items()
    }
    return header.about, arrays


def _pieces(about: dict[str, Any], arrays: Arrays) -> list[Any]:
    """Return what the file consists of after its prefix: the header, then each array and its filling.

    The header is filled up to the alignment with blanks, which json passes over.
    """
    places: dict[str, _Place] = {}
    pieces: list[Any] = []
    start = 0
    for name, array in arrays.items():
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        filling = -stored.nbytes % _ALIGNMENT
        places[name] = _Place(stored.dtype.str, stored.shape, start)
        pieces += [stored.reshape(-1).view(np.uint8), bytes(filling)]
        start += stored.nbytes + filling
    header = msgspec.json.encode(_Header(about, places))
    return [header + b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT), *pieces]
