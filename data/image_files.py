"""Whether training can read a picture file, and whether the annotation file tells its size: judged by DALI.

Training reads with DALI, so DALI gives the verdict. Other readers are no measure: Pillow reads GIF, which
DALI refuses, and lets a PNG pass that lacks its last bytes, where DALI fails. Pillow only says what a file is
that DALI has refused.
"""

import os
import re
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.fn.io import file as fn_file
from nvidia.dali.pipeline import Pipeline
from PIL import Image, UnidentifiedImageError

from data.graph import encode_path

MAX_PIXELS = 178_956_970
"""Pixels from which on Pillow, too, takes a picture for an attack on the memory of whoever opens it."""

DALI_FORMATS = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""What DALI decodes, as Pillow calls it."""

# Pictures between two reports, and pictures a batch. A header takes 0.1 ms and a decoded picture 3 ms.
_CHUNK_HEADERS, _CHUNK_DECODED = 4096, 256
_BATCH_HEADERS, _BATCH_DECODED = 128, 16
_BATCH_PIXELS = 2**26  # decoded, 200 MB: some phone pictures, or one that is larger

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_SOURCE = re.compile(
    r"(\[[^\]]*\]\s*)+(global \S+ \S+ )?(.* error: \([^)]*\) )?"
)  # [library], OpenCV's lines
_MESSAGE_CHARACTERS = 120

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
    What decoders print on the standard error stream meanwhile, without a file's name, goes into the details.
    """
    chunk = _CHUNK_HEADERS if level is Level.header else _CHUNK_DECODED
    defects: dict[int, ImageDefect] = {}
    for start in range(0, len(paths), chunk):
        places = range(start, min(start + chunk, len(paths)))
        found = _find_no_files(paths, places, workers)
        with _decoder_messages() as messages:
            judge = _Judge(paths, sizes_px, workers, messages)
            found |= judge.judge_headers([place for place in places if place not in found])
            if level is Level.full:
                found |= judge.judge_pixels([place for place in places if place not in found])
        defects |= dict(sorted(found.items()))
        if report is not None:
            report(len(places))
    return defects


def _find_no_files(paths: Sequence[str], places: Sequence[int], workers: int) -> dict[int, ImageDefect]:
    """Ask the file system first: opening a named pipe would wait for ever."""

    def look(share: NDArray[np.int64]) -> list[tuple[int, ImageDefect]]:
        looked = ((place, _file_defect(paths[place])) for place in share.tolist())
        return [(place, defect) for place, defect in looked if defect is not None]

    with ThreadPoolExecutor(workers) as pool:  # a file server answers several at a time
        return dict(pair for part in pool.map(look, np.array_split(places, workers)) for pair in part)


def _file_defect(path: str) -> ImageDefect | None:
    try:
        path.encode()  # DALI takes UTF-8
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            if status.st_size == 0:
                return ImageDefect("empty", "the file has 0 bytes")
            if not os.access(path, os.R_OK):
                return ImageDefect("unreadable", "the file may not be read: its permissions forbid it")
            return None
    except FileNotFoundError:
        dangling = os.path.islink(path)
        return ImageDefect(
            "missing", "the file is a link to nothing" if dangling else "there is no such file"
        )
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return ImageDefect("unreadable", f"the file cannot be read ({error})")
    return ImageDefect("no file", "it is a folder or a device, not a regular file")


class _Judge:
    """DALI's verdict on files by their place in `paths`: batches first, those that fail file by file."""

    def __init__(
        self, paths: Sequence[str], sizes_px: NDArray[np.integer], threads: int, messages: "_Messages"
    ) -> None:
        self._paths = paths
        self._sizes_px = sizes_px
        self._threads = threads
        self._messages = messages

    def judge_headers(self, places: Sequence[int]) -> dict[int, ImageDefect]:
        """Find what DALI does not read, what is too large, and what has another size than sizes_px."""
        defects: dict[int, ImageDefect] = {}
        groups = [places[start : start + _BATCH_HEADERS] for start in range(0, len(places), _BATCH_HEADERS)]
        for place, found in self._shapes(groups, Level.header):
            if isinstance(found, str):
                defects[place] = _refused_header(self._paths[place], found)
            elif defect := _size_defect(found, tuple(self._sizes_px[place].tolist())):
                defects[place] = defect
        return defects

    def judge_pixels(self, places: Sequence[int]) -> dict[int, ImageDefect]:
        """Decode files whose sizes_px are true; find those that DALI cannot decode."""
        return {
            place: ImageDefect("undecodable", f"it is cut short or damaged: DALI cannot decode it ({found})")
            for place, found in self._shapes(list(_by_memory(places, self._sizes_px)), Level.full)
            if isinstance(found, str)
        }

    def _shapes(
        self, groups: Sequence[Sequence[int]], level: Level
    ) -> Iterator[tuple[int, tuple[int, int] | str]]:
        """Yield each place with (width, height), or with what the decoders say where DALI fails."""
        graph = self._graph(groups, level)
        for group in groups:
            self._messages.clear()
            try:
                (shapes,) = graph.run()
            except RuntimeError as error:
                if len(group) == 1:
                    yield group[0], self._messages.reason(error)
                else:
                    yield from self._shapes([[place] for place in group], level)
            else:
                for place, (height, width, _) in zip(
                    group, np.asarray(shapes.as_cpu().as_array()).tolist(), strict=True
                ):
                    yield place, (width, height)

    def _graph(self, groups: Sequence[Sequence[int]], level: Level) -> Pipeline:
        """Build the graph that puts out the shapes (height, width, channels) of a group's pictures."""
        batches = (([encode_path(self._paths[place]) for place in group],) for group in groups)
        pipeline = Pipeline(
            batch_size=max(map(len, groups), default=1),
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,  # nothing is read ahead, so that messages are the current group's
        )
        with pipeline:
            (paths,) = fn.external_source(source=batches, num_outputs=1)
            files = fn_file.read(paths)
            if level is Level.header:
                shapes = fn.peek_image_shape(files, adjust_orientation=False)
            else:  # as in data.graph; what follows there, resizing, fails on no picture
                shapes = fn.decoders.image_slice(
                    files, device="cpu", rel_start=[0.0, 0.0], rel_shape=[1.0, 1.0], adjust_orientation=False
                ).shape()
            pipeline.set_outputs(shapes)
        return pipeline


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


class _Messages:
    """What libraries in C have printed on the standard error stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    def reason(self, error: RuntimeError) -> str:
        """Return the first line without colours and its source; where none was printed, DALI's own words."""
        self._file.seek(0)
        printed = _COLOURS.sub("", self._file.read().decode(errors="replace")).strip()
        # DALI's stand between where the operator stands in our code and a trace of its own.
        own = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
        own = own.partition("C++ context")[0].strip(" :\n")
        line = (printed or own).partition("\n")[0]
        return _SOURCE.sub("", line, count=1)[:_MESSAGE_CHARACTERS]


@contextmanager
def _decoder_messages() -> Iterator[_Messages]:
    """Send the standard error stream of the process into a file meanwhile."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        standard_error = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield _Messages(file)
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
