"""Whether training can read a picture file, and whether the annotation file tells its size: judged by DALI.

Training reads with DALI, so DALI gives the verdict. Other readers are no measure: Pillow reads GIF, which
DALI refuses, and lets a PNG pass that lacks its last bytes, where DALI fails. Pillow only says what a file is
that DALI has refused.
"""

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.backslashes import hint_of_backslashes
from data.trial_process import Result, TrialProcess

MAX_PIXELS = 178_956_970
"""Pixels from which on Pillow, too, takes a picture for an attack on the memory of whoever opens it."""

DALI_FORMATS = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""What DALI decodes, as Pillow calls it."""

# Pictures between two reports, and pictures a batch. A header takes 0.1 ms and a decoded picture 3 ms.
_CHUNK_HEADERS, _CHUNK_DECODED = 4096, 256
_BATCH_HEADERS, _BATCH_DECODED = 128, 16
_BATCH_PIXELS = 2**26  # decoded, 200 MB: some phone pictures, or one that is larger

Kind = Literal[
    "missing",
    "no file",
    "unreadable",
    "empty",
    "not an image",
    "unsupported format",
    "too many pixels",
    "size unlike",
    "undecodable",
]


FileState = tuple[int, int]
"""Size in bytes and time of change in nanoseconds: where both are as before, so is the file."""


class Level(Enum):
    """How closely a file is looked at: its header, or every pixel besides."""

    header = "header"
    full = "full"


@dataclass(frozen=True)
class ImageDefect:
    """Why a picture can't be trained on; the detail is a sentence with the values."""

    kind: Kind
    detail: str


def inspect(path: Path, size_px: tuple[int, int], level: Level) -> ImageDefect | None:
    """Look at one picture file; size_px is (width, height) as the annotation file has it."""
    return inspect_all([str(path)], np.array([size_px]), level, workers=1).get(0)


def inspect_all(
    paths: Sequence[str],
    sizes_px: NDArray[np.integer],
    level: Level,
    workers: int,
    report: Callable[[int], None] | None = None,
) -> dict[int, ImageDefect]:
    """Look at picture files in parallel; return the defects of the bad ones by their place in `paths`.

    sizes_px: N×2 (width, height) of the annotation file. workers: threads.
    report: called now and then with how many more files are done.
    Level header opens each file and reads its header alone: it must be a regular file of a kind that DALI
    reads, of the annotation file's size and of at most MAX_PIXELS. Level full decodes it as well: what passes
    is decoded in training.
    DALI runs in a process of its own, so that a file that crashes a decoder is found, too. To start it takes
    a second or two, so ask about many files at once.
    """
    chunk = _CHUNK_HEADERS if level is Level.header else _CHUNK_DECODED
    defects: dict[int, ImageDefect] = {}
    with TrialProcess(workers) as trial:
        for start in range(0, len(paths), chunk):
            places = range(start, min(start + chunk, len(paths)))
            found = _find_no_files(paths, places, workers)
            found |= _judge_headers(trial, paths, sizes_px, [place for place in places if place not in found])
            if level is Level.full:
                left = [place for place in places if place not in found]
                found |= _judge_pixels(trial, paths, sizes_px, left)
            defects |= dict(sorted(found.items()))
            if report is not None:
                report(len(places))
    return defects


def look_up(paths: Sequence[str], workers: int) -> list[FileState | ImageDefect]:
    """Ask the file system about each file, without opening it; workers: threads.

    Returns what tells a state of a regular file from others, or why it is no file that can be read.
    """

    def look(share: NDArray[np.int64]) -> list[FileState | ImageDefect]:
        return [_look_up_one(paths[place]) for place in share.tolist()]

    with ThreadPoolExecutor(workers) as pool:  # a file server answers several at a time
        shares = np.array_split(np.arange(len(paths)), workers)
        return [found for part in pool.map(look, shares) for found in part]


def _find_no_files(paths: Sequence[str], places: Sequence[int], workers: int) -> dict[int, ImageDefect]:
    """Ask the file system first: opening a named pipe would wait for ever."""
    looked = zip(places, look_up([paths[place] for place in places], workers), strict=True)
    return {place: found for place, found in looked if isinstance(found, ImageDefect)}


def _look_up_one(path: str) -> FileState | ImageDefect:
    try:
        path.encode()  # DALI takes UTF-8
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            if status.st_size == 0:
                return ImageDefect("empty", "the file has 0 bytes")
            if not os.access(path, os.R_OK):
                return ImageDefect("unreadable", "the file may not be read: its permissions forbid it")
            return status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        dangling = os.path.islink(path)
        return ImageDefect(
            "missing",
            "the file is a link to nothing"
            if dangling
            else f"there is no such file{hint_of_backslashes(path)}",
        )
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return ImageDefect("unreadable", f"the file cannot be read ({error})")
    return ImageDefect("no file", "it is a folder or a device, not a regular file")


def _judge_headers(
    trial: TrialProcess, paths: Sequence[str], sizes_px: NDArray[np.integer], places: Sequence[int]
) -> dict[int, ImageDefect]:
    """Find what DALI does not read, what is too large, and what has another size than sizes_px."""
    defects: dict[int, ImageDefect] = {}
    groups = [places[start : start + _BATCH_HEADERS] for start in range(0, len(places), _BATCH_HEADERS)]
    for place, result in _try(trial, paths, groups, Level.header):
        if isinstance(result, str):
            defects[place] = _refused_header(paths[place], result)
        elif defect := _size_defect(result, tuple(sizes_px[place].tolist())):
            defects[place] = defect
    return defects


def _judge_pixels(
    trial: TrialProcess, paths: Sequence[str], sizes_px: NDArray[np.integer], places: Sequence[int]
) -> dict[int, ImageDefect]:
    """Decode files whose sizes_px are true; find those that DALI cannot decode."""
    return {
        place: ImageDefect("undecodable", f"it is cut short or damaged: DALI cannot decode it ({result})")
        for place, result in _try(trial, paths, [*_by_memory(places, sizes_px)], Level.full)
        if isinstance(result, str)
    }


def _try(
    trial: TrialProcess, paths: Sequence[str], groups: Sequence[Sequence[int]], level: Level
) -> Iterator[tuple[int, Result]]:
    """Yield each place with DALI's result."""
    groups_of_paths = [[paths[place] for place in group] for group in groups]
    for group, results in zip(groups, trial.read(groups_of_paths, level is Level.full), strict=True):
        yield from zip(group, results, strict=True)


def _by_memory(places: Sequence[int], sizes_px: NDArray[np.integer]) -> Iterator[list[int]]:
    """Group places so that the decoded pictures of a group fit into memory."""
    group: list[int] = []
    pixels = 0
    for place, picture_pixels in zip(
        places, sizes_px[places].prod(axis=1, dtype=np.int64).tolist(), strict=True
    ):
        if group and (len(group) == _BATCH_DECODED or pixels + picture_pixels > _BATCH_PIXELS):
            yield group
            group, pixels = [], 0
        group.append(place)
        pixels += picture_pixels
    if group:
        yield group


def _size_defect(found: tuple[int, int], annotated: tuple[int, ...]) -> ImageDefect | None:
    width, height = found
    if width * height > MAX_PIXELS:
        return ImageDefect(
            "too many pixels", f"the header says {width}×{height} pixels, more than {MAX_PIXELS:,} in all"
        )
    if found == annotated:
        return None
    detail = f"the file has {width}×{height} pixels, the annotation file says {annotated[0]}×{annotated[1]}"
    if found == annotated[::-1]:
        detail += ", width and height exchanged: is it meant to be turned?"
    return ImageDefect("size unlike", detail)


def _refused_header(path: str, reason: str) -> ImageDefect:
    """Say what a file is that DALI does not read."""
    start = b""
    try:
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            start = file.read(12)
            with Image.open(path) as picture:
                kind = picture.format
    except UnidentifiedImageError:
        return ImageDefect("not an image", f"no reader knows it as a picture; it begins with {start!r}")
    except Exception as error:  # Pillow's readers raise almost anything on a broken header
        return ImageDefect("undecodable", f"its header is cut short or damaged ({reason}; {error})")
    if kind not in DALI_FORMATS:
        return ImageDefect("unsupported format", f"DALI does not read {kind}; save it as JPEG or PNG")
    return ImageDefect("undecodable", f"its header is cut short or damaged ({reason})")
