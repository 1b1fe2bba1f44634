"""Which image files training can't read, and how that is found out.

An image is bad if DALI can't decode its file or finds a size other than the annotation file's. DALI is the
judge because training reads with DALI: Pillow reads GIF, which DALI refuses, and accepts a PNG without its
last bytes, on which DALI fails. A TIFF of floats is bad too: DALI turns it white, and predict.py refuses it.

Before a run, `find_bad_images` checks every file that is new or has changed, and `exclude` drops the bad
images. data.loader finds and replaces images that go bad later. `inspect_all` is the check itself, which the
doctor also uses.
"""

import hashlib
import multiprocessing
import os
import signal
import stat
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache as memoized
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.fn.io import file as fn_file
from nvidia.dali.pipeline import Pipeline
from PIL import ExifTags, Image, UnidentifiedImageError

from ssd.cli import check_folder, writing
from ssd.console import RunConsole
from ssd.errors import UserError

if TYPE_CHECKING:  # it imports torch, which would delay each start of the decode worker
    from data.index import CocoIndex

MAX_PIXELS = 178_956_970
"""Pillow, too, treats a picture with more pixels as a decompression bomb."""

DALI_FORMATS = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""The formats that DALI decodes, by Pillow's names."""

READ_TIMEOUT_S = 300.0
"""If reading a group of files takes longer, on any disk, DALI hangs."""

CRASHES = "the decoder crashes, or has not come to an end after"
"""Part of the reason given for an image that ends the process reading it."""

NAMED_IMAGES = 5
"""The number of bad images that an error lists."""

UPRIGHT = 1
"""The EXIF orientation of a picture that is stored the way it should be shown."""

_GROUP = 256  # files whose headers are read at once; progress is reported after each group
_DECODED_PIXELS = 2**26  # decoded at once (200 MB); a larger picture is decoded alone

Result = tuple[int, int] | str
"""DALI's result for a file: (width, height), or the reason it can't be read."""


@dataclass(frozen=True)
class ImageDefect:
    """Why an image is bad: the name of a data.doctor.findings.Kind and a description with the values."""

    kind: str
    detail: str


def find_bad_images(
    index: "CocoIndex", decode: bool, threads: int, cache: Path, console: RunConsole
) -> dict[int, str]:
    """Return a line about each bad image, by image id. Opens only files that are new or have changed.

    decode: decode every picture (data.check=full) instead of reading headers only.
    A verdict depends on the file's path, size and times, and on the annotated width and height. The cache has
    one file of verdicts per image folder and kind of check. If several processes have files to check, one
    checks them and the others wait for its verdicts.
    Raises UserError if the verdicts can't be saved.
    """
    folder = index.source.image_folder
    check = "full" if decode else "header"
    name = hashlib.sha256(f"{folder.resolve()} {check}".encode()).hexdigest()[:32]
    entry = cache / f"bad-images-{name}.json"
    paths = [index.path(image) for image in range(len(index))]
    sizes_px = index.sizes_px.tolist()
    states, bad = {}, {}
    for image, found in enumerate(_look_up(paths, threads)):
        if isinstance(found, ImageDefect):  # not cached: permissions or a mount may be the cause
            bad[image] = found.detail
        else:
            state = f"{paths[image]} {sizes_px[image]} {found}"
            states[image] = hashlib.blake2b(state.encode(), digest_size=8).hexdigest()
    verdicts = _read_verdicts(entry)
    if not verdicts.keys() >= {*states.values()}:
        check_folder(cache, "data.cache")
        with FileLock(entry.with_suffix(".lock")):
            verdicts = _read_verdicts(entry)  # another process may have been first
            if unknown := [image for image, state in states.items() if state not in verdicts]:
                title = f"checking {len(unknown)} image files of {folder} (data.check={check})"
                with console.counting(len(unknown), title) as report:
                    files = [paths[image] for image in unknown]
                    defects = inspect_all(files, index.sizes_px[unknown], decode, threads, report)
                for n, image in enumerate(unknown):
                    verdicts[states[image]] = defects[n].detail if n in defects else None
                temporary = entry.with_suffix(".tmp")
                with writing(temporary, "data.cache"):
                    temporary.write_bytes(msgspec.json.encode(verdicts))
                    temporary.replace(entry)
    bad |= {image: why for image, state in states.items() if (why := verdicts[state]) is not None}
    return {int(index.image_ids[image]): bad_line(index, image, bad[image]) for image in sorted(bad)}


def _read_verdicts(entry: Path) -> dict[str, str | None]:
    """Return the reason each file is bad, None if it is good, by a hash of its state; {} for a damaged file.

    All states ever seen are kept: hosts may share the cache while the times of their copies differ.
    """
    try:
        return msgspec.json.decode(entry.read_bytes(), type=dict[str, str | None])
    except (OSError, ValueError, msgspec.DecodeError):
        return {}


def exclude(index: "CocoIndex", image_ids: Iterable[int]) -> "CocoIndex":
    """Return the index as if these images and their boxes were not in the annotation file.

    Raises UserError if no image is left.
    """
    kept = ~np.isin(index.image_ids, [*image_ids])
    if kept.all():
        return index
    if not kept.any():
        raise UserError(f"{index.source.annotations_key}: no image is left, all of them are bad")
    boxes = np.diff(index.box_starts)
    kept_boxes = np.repeat(kept, boxes)
    return replace(
        index,
        file_names=index.file_names[kept],
        image_ids=index.image_ids[kept],
        sizes_px=index.sizes_px[kept],
        box_starts=np.concatenate(([0], np.cumsum(boxes[kept]))),
        boxes_ltrb=index.boxes_ltrb[kept_boxes],
        labels=index.labels[kept_boxes],
        dropped=index.dropped | {"bad images (data.on_bad_image)": int((~kept).sum())},
    )


def bad_line(index: "CocoIndex", image: int, why: str) -> str:
    """Describe a bad image in one line."""
    return f"{index.path(image)} (image id {index.image_ids[image]}): {why}"


def bad_images_error(what: str, lines: Iterable[str], fix: str) -> UserError:
    """Return an error that begins with `what` and lists the first few bad images."""
    return UserError(f"{what} {'; '.join([*lines][:NAMED_IMAGES])}. {fix}")


def dali_reason(error: RuntimeError) -> str:
    """Return DALI's own message, without our line of code before it and DALI's trace after it."""
    own = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
    return own.partition("C++ context")[0].strip(" :\n")


def inspect_all(
    paths: Sequence[str],
    sizes_px: NDArray[np.integer],
    decode: bool,
    workers: int,
    report: Callable[[int], None] | None = None,
) -> dict[int, ImageDefect]:
    """Check image files; return the defects of the bad ones by their index in `paths`.

    sizes_px: N×2 (width, height) from the annotation file. workers: threads.
    report: called after each group with the number of files in it.
    A file must be a regular file in a format that DALI reads, with the annotated size and at most MAX_PIXELS.
    decode: also decode it completely, so that training can decode every file that passes. DALI runs in a
    separate process, so files that crash a decoder are found too. That process takes seconds to start, so
    pass many files at once.
    """
    looked_up = enumerate(_look_up(paths, workers))
    defects = {n: found for n, found in looked_up if isinstance(found, ImageDefect)}
    with closing(_DecodeWorker(workers)) as worker:
        for start in range(0, len(paths), _GROUP):
            group = range(start, min(start + _GROUP, len(paths)))
            left = [n for n in group if n not in defects]
            for n, result in zip(left, worker.read([paths[n] for n in left], decode=False), strict=True):
                if defect := _header_defect(paths[n], result, tuple(sizes_px[n].tolist())):
                    defects[n] = defect
            left = [n for n in left if n not in defects] if decode else []
            largest = int(sizes_px[left].prod(axis=1, dtype=np.int64).max(initial=1))
            together = max(_DECODED_PIXELS // largest, 1)
            for first in range(0, len(left), together):
                some = left[first : first + together]
                for n, result in zip(some, worker.read([paths[n] for n in some], decode=True), strict=True):
                    if isinstance(result, str):
                        detail = f"it is cut short or damaged: DALI cannot decode it ({result})"
                        defects[n] = ImageDefect("undecodable", detail)
            if report is not None:
                report(len(group))
    return dict(sorted(defects.items()))


def _look_up(paths: Sequence[str], threads: int) -> list[str | ImageDefect]:
    """Ask the file system about each file. Opening would block forever on a named pipe."""
    with ThreadPool(threads) as pool:  # a file server answers several requests at once
        return pool.map(_look_up_one, paths)


def _look_up_one(path: str) -> str | ImageDefect:
    """Return a string that changes whenever a regular file changes, or why the file can't be read."""
    try:
        path.encode()  # DALI takes UTF-8
        status = os.stat(path)
    except FileNotFoundError:
        return ImageDefect("missing", "there is no such file")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return ImageDefect("unreadable", f"the file cannot be read ({error})")
    if not stat.S_ISREG(status.st_mode):
        return ImageDefect("no_file", "it is a folder or a device, not a regular file")
    if status.st_size == 0:
        return ImageDefect("empty", "the file has 0 bytes")
    if not os.access(path, os.R_OK):
        return ImageDefect("unreadable", "the file may not be read: its permissions forbid it")
    # ctime can't be set back. Not the inode: some network file systems renumber files at each mount.
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _header_defect(path: str, found: Result, annotated: tuple[int, ...]) -> ImageDefect | None:
    """Find what is wrong with a file from DALI's result for its header. annotated: (width, height)."""
    if isinstance(found, str):
        return _why_refused(path, found)
    width, height = found
    if width * height > MAX_PIXELS:
        detail = f"the header says {width}×{height} pixels, more than {MAX_PIXELS:,} in all"
        return ImageDefect("too_many_pixels", detail)
    if found != annotated:
        expected = f"{annotated[0]}×{annotated[1]}"
        detail = f"the file has {width}×{height} pixels, the annotation file says {expected}"
        return ImageDefect("size_unlike", detail)
    if path.lower().endswith((".tif", ".tiff")) and _lacks_range(path):
        detail = "its floats, or its integers of over 16 bits, have no range; save it with 8 bits a channel"
        return ImageDefect("unsupported_format", detail)
    return None


def _why_refused(path: str, reason: str) -> ImageDefect:
    """Explain a file whose header DALI can't read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            kind = picture.format
    except UnidentifiedImageError:
        return ImageDefect("not_an_image", "no reader knows it as a picture")
    except Exception:  # Pillow's readers raise almost anything on a broken header
        kind = None
    if kind is not None and kind not in DALI_FORMATS:
        return ImageDefect("unsupported_format", f"DALI does not read {kind}; save it as JPEG or PNG")
    return ImageDefect("undecodable", f"its header is cut short or damaged ({reason})")


def _lacks_range(tiff: str) -> bool:
    """Return whether a TIFF doesn't say which value is white: ssd.image refuses it, DALI assumes 1.0."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(tiff) as picture:
            return picture.mode in ("F", "I")
    except Exception:  # Pillow can't open floats in several channels
        return True


def orientation(picture: Image.Image) -> object:
    """Return the EXIF orientation: 1 to 8 in a valid file, UPRIGHT if there is none.

    Training rotates neither pictures nor boxes. Pillow may raise almost any exception on damaged EXIF data.
    """
    if picture.format == "PNG" and "exif" not in picture.info:
        return UPRIGHT  # getexif() would decode the whole picture to look after the pixels
    return picture.getexif().get(ExifTags.Base.Orientation, UPRIGHT)


class _DecodeWorker:
    """DALI in a process that may crash: OpenJPEG does on some broken JPEG 2000 headers."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None

    def read(self, paths: list[str], decode: bool) -> list[Result]:
        """Return the results of a group of files. decode: decode them, instead of reading headers only.

        If the process is lost, the files are read one by one. A file is bad if it also ends a fresh process:
        a damaged file may corrupt memory so that a later, good file crashes.
        """
        if not paths:
            return []
        for _ in range(2):
            if self._pool is None:
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, initializer=_silence)
                self._pool.submit(os.getpid).result()  # if it can't start, no file is to blame
            try:
                return self._pool.submit(_read_group, paths, decode, self._threads, READ_TIMEOUT_S).result()
            except BrokenProcessPool:
                self.close()
            if len(paths) > 1:
                return [result for path in paths for result in self.read([path], decode)]
        return [f"{CRASHES} {READ_TIMEOUT_S:g} s"]

    def close(self) -> None:
        """Stop the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _silence() -> None:
    """Discard what C libraries print about damaged files."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard_stream in (1, 2):
        os.dup2(nowhere, standard_stream)


def _read_group(paths: list[str], decode: bool, threads: int, timeout_s: float) -> list[Result]:
    """Read a group of files in the worker; if DALI fails on the group, read them one by one."""
    # SIGALRM ends a process that hangs, and one whose parent was killed.
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        graph = _shape_graph(decode, threads)
        graph.feed_input("paths", [np.frombuffer(path.encode(), np.uint8) for path in paths])
        (shapes,) = graph.run()
    except RuntimeError as error:
        _shape_graph.cache_clear()  # DALI says a pipeline is invalid after an error
        if len(paths) == 1:
            return [dali_reason(error).partition("\n")[0][:120]]
        return [result for path in paths for result in _read_group([path], decode, threads, timeout_s)]
    return [(width, height) for height, width, *_ in np.asarray(shapes.as_cpu().as_array()).tolist()]


@memoized
def _shape_graph(decode: bool, threads: int) -> Pipeline:
    """Build the graph that returns (height, width, channels) of each file fed as `paths`."""
    # prefetch_queue_depth=1: nothing is read ahead, so an error or crash belongs to the current group.
    pipeline = Pipeline(batch_size=_GROUP, num_threads=threads, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        files = fn_file.read(fn.external_source(name="paths", device="cpu"))
        if decode:  # as in data.graph; the resizing that follows there never fails
            pictures = fn.decoders.image_slice(
                files, device="cpu", rel_start=[0.0, 0.0], rel_shape=[1.0, 1.0], adjust_orientation=False
            )
            shapes = pictures.shape()
        else:
            shapes = fn.peek_image_shape(files, adjust_orientation=False)
        pipeline.set_outputs(shapes)
    return pipeline
