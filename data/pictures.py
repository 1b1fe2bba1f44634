"""Which image files training can't read, how that is found out, and what takes their place.

An image is bad where DALI can't decode its file or finds another size than the annotation file says. Training
reads with DALI, so DALI judges: Pillow reads GIF, which DALI refuses, and lets a PNG pass that lacks its last
bytes, where DALI fails. Bad is a TIFF of floats, too, which DALI makes white and predict.py refuses.

Before a run `find_bad_images` checks every file, once in each of its states, and `exclude` leaves out the bad
images. In a batch that DALI fails on, data.loader asks `why_it_fails` of each image, and `replace_bad` puts
others in their place. `inspect_all` is the check alone, which the doctor uses, too.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import stat
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache as memoized
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.fn.io import file as fn_file
from nvidia.dali.pipeline import Pipeline
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PREFIXES, SAMPLEFORMAT, ImageFileDirectory_v2

from ssd.console import RunConsole
from ssd.errors import UserError

if TYPE_CHECKING:  # it imports torch, which the decode worker would wait for at each start
    from data.index import CocoIndex

MAX_PIXELS = 178_956_970
"""Pixels from which on Pillow, too, takes a picture for an attack on the memory of whoever opens it."""

DALI_FORMATS = frozenset({"BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"})
"""What DALI decodes, as Pillow calls it."""

READ_TIMEOUT_S = 300.0
"""A group of files that takes longer, from whatever disk, hangs DALI."""

CRASHES = "the decoder crashes, or has not come to an end after"
"""What is said, among other things, of an image that ends the process that reads it."""

NAMED_IMAGES = 5
"""Bad images that an error lists."""

ORIENTATION_TAG = 0x0112
UPRIGHT = 1

_NO_RANGE = "its floats, or its integers of over 16 bits, have no range; save it with 8 bits a channel"
_GROUP = 256  # files between two reports, whose headers are read at once
_DECODED, _DECODED_PIXELS = 16, 2**26  # decoded at once, 200 MB: some phone pictures, or one that is larger

FileState = tuple[int, int, int]
"""Size, mtime and ctime, which nobody sets back: where all are as before, so is the file.

Not the inode: some network file systems number files anew at each mount, and all would be opened again.
"""

Result = tuple[int, int] | str
"""What DALI makes of a file: (width, height), or why it can't read it."""

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


@dataclass(frozen=True)
class ImageDefect:
    """Why an image is bad; the detail is a sentence with the values."""

    kind: Kind
    detail: str


# Before training: every file is checked, the bad images are left out.


def find_bad_images(
    index: "CocoIndex", decode: bool, threads: int, cache: Path, console: RunConsole
) -> dict[int, str]:
    """Return a line about each bad image, by its id; open only files whose state was never looked into.

    decode: look at every pixel (data.check=full), not at headers alone.
    A verdict depends on a file's path and FileState, and on the annotation file's width and height.
    Those on an image folder, by header or by pixel, are one file in the cache folder. Of several processes
    with files to open one does it, the others wait and find its verdicts. Where all are known the cache may
    be read-only.
    Raises UserError where it can't be used.
    """
    states, reasons = _look_up_states(index, threads)
    folder = index.source.image_folder
    check = "full" if decode else "header"
    name = hashlib.sha256(f"{folder.resolve()} {check}".encode()).hexdigest()[:32]
    entry = cache / f"bad-images-{name}.npz"
    known, bad = _read_verdicts(entry)
    if not np.isin(states, known).all():
        with _naming_the_key(cache):
            cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(entry.with_suffix(".lock")).acquire()
        with lock:
            known, bad = _read_verdicts(entry)  # another process may have been first
            unknown = np.flatnonzero(~np.isin(states, known))
            if len(unknown):
                title = f"checking {len(unknown)} image files of {folder} (data.check={check})"
                with console.counting(len(unknown), title) as report:
                    paths = [index.path(image) for image in unknown.tolist()]
                    found = inspect_all(paths, index.sizes_px[unknown], decode, threads, report)
                bad |= {int(states[unknown[n]]): defect.detail for n, defect in found.items()}
                _write_verdicts(entry, np.union1d(known, states), bad)
    for image in np.flatnonzero(np.isin(states, np.array([*bad], dtype=np.uint64))).tolist():
        reasons[image] = bad[int(states[image])]
    return {int(index.image_ids[image]): bad_line(index, image, reasons[image]) for image in sorted(reasons)}


_NO_FILE = 0  # in place of a state


def _look_up_states(index: "CocoIndex", threads: int) -> tuple[NDArray[np.uint64], dict[int, str]]:
    """Return a hash of each file's state, _NO_FILE where there is no file to open, and why, by image."""
    states = np.full(len(index), _NO_FILE, dtype=np.uint64)
    reasons = {}
    for images in np.array_split(
        np.arange(len(index)), len(index) // 65_536 + 1
    ):  # paths in memory at a time
        looked_up = _look_up([index.path(image) for image in images.tolist()], threads)
        for image, found in zip(images.tolist(), looked_up, strict=True):
            if isinstance(found, ImageDefect):  # not kept: it may be a matter of permissions, or of a mount
                reasons[image] = found.detail
            else:
                width, height = index.sizes_px[image].tolist()
                state = (
                    f"{index.file_names[image].decode()} {width} {height} {found[0]} {found[1]} {found[2]}"
                )
                states[image] = int.from_bytes(
                    hashlib.blake2b(state.encode(), digest_size=8).digest(), "little"
                )
    return states, reasons


def _read_verdicts(entry: Path) -> tuple[NDArray[np.uint64], dict[int, str]]:
    """Return the states looked into, and of the bad ones why; a damaged entry knows none."""
    try:
        if entry.exists():
            with _naming_the_key(entry.parent), np.load(entry) as stored:
                bad = zip(stored["bad_states"].tolist(), stored["reasons"].tolist(), strict=True)
                return stored["states"], dict(bad)
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        pass
    return np.array([_NO_FILE], dtype=np.uint64), {}


def _write_verdicts(entry: Path, states: NDArray[np.uint64], bad: dict[int, str]) -> None:
    """Keep all states ever met: hosts may share the folder while their copies' times of change differ."""
    bad_states, reasons = np.array([*bad], dtype=np.uint64), np.array([*bad.values()], dtype=str)
    temporary = entry.with_suffix(".tmp")
    with _naming_the_key(entry.parent):
        with temporary.open("wb") as file:
            np.savez(file, states=states, bad_states=bad_states, reasons=reasons)
        temporary.replace(entry)


@contextmanager
def _naming_the_key(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"data.cache={cache}: can't be used ({reason}); give data.cache=DIR") from error


def exclude(index: "CocoIndex", image_ids: Iterable[int]) -> "CocoIndex":
    """Return the index that an annotation file without these images and their boxes would give.

    Raises UserError where no image is left.
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


# In a batch: the bad images are found by trying, others take their place.


def why_it_fails(graph: Pipeline) -> str | None:
    """Run a graph of one image; return what DALI says where it fails.

    A batch that fails names the operator, not always the file, so its images are run one by one: on the CPU,
    since a graph that failed on a GPU cannot be trusted to judge the next file there.
    """
    try:
        graph.run()
    except RuntimeError as error:
        return dali_reason(error)
    return None


def replace_bad(batch: Sequence[int], bad: Mapping[int, str]) -> list[int]:
    """Return a global batch where the nearest good image before it takes the place of each bad one.

    Before the first comes the last; where all are bad none changes. The global batch is the same however many
    ranks share it, so the result is, too.
    """
    replaced = []
    for position, image in enumerate(batch):
        before = (batch[position - back] for back in range(len(batch)))
        replaced.append(next((candidate for candidate in before if candidate not in bad), image))
    return replaced


def bad_line(index: "CocoIndex", image: int, why: str) -> str:
    """Return what is said of a bad image."""
    return f"{index.path(image)} (image id {index.image_ids[image]}): {why}"


def bad_images_error(what: str, lines: Iterable[str], fix: str) -> UserError:
    """Return an error that lists the first few bad images by their lines. what: is said before them."""
    return UserError(f"{what} {'; '.join([*lines][:NAMED_IMAGES])}. {fix}")


def dali_reason(error: RuntimeError) -> str:
    """Return DALI's own words: they stand between the line in our code and a trace through its own."""
    own = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
    return own.partition("C++ context")[0].strip(" :\n")


# The check of files.


def inspect_all(
    paths: Sequence[str],
    sizes_px: NDArray[np.integer],
    decode: bool,
    workers: int,
    report: Callable[[int], None] | None = None,
) -> dict[int, ImageDefect]:
    """Check image files; return the defects of the bad ones by their position in `paths`.

    sizes_px: N×2 (width, height) of the annotation file. workers: threads.
    report: called now and then with how many more files are done.
    Of each file the header is read: it must be a regular file of a kind that DALI reads, of the annotation
    file's size and of at most MAX_PIXELS. decode: read all of it as well: what passes is decoded in training.
    DALI runs in a process of its own, so a file that crashes a decoder is found, too. That process takes
    seconds to start, so ask about many files at once.
    """
    defects: dict[int, ImageDefect] = {}
    with closing(_DecodeWorker(workers)) as worker:
        for start in range(0, len(paths), _GROUP):
            group = range(start, min(start + _GROUP, len(paths)))
            # The file system comes first: opening a named pipe would wait for ever.
            looked_up = zip(group, _look_up([paths[n] for n in group], workers), strict=True)
            defects |= {n: found for n, found in looked_up if isinstance(found, ImageDefect)}
            left = [n for n in group if n not in defects]
            for n, result in zip(left, worker.read([paths[n] for n in left], decode=False), strict=True):
                if isinstance(result, str):
                    defects[n] = _header_defect(paths[n], result)
                elif (defect := _size_defect(result, tuple(sizes_px[n].tolist()))) is not None:
                    defects[n] = defect
            left = [n for n in left if n not in defects] if decode else []
            largest = int(sizes_px[left].prod(axis=1, dtype=np.int64).max(initial=1))
            together = min(max(_DECODED_PIXELS // largest, 1), _DECODED)
            for first in range(0, len(left), together):
                decoded = left[first : first + together]
                for n, result in zip(
                    decoded, worker.read([paths[n] for n in decoded], decode=True), strict=True
                ):
                    if isinstance(result, str):
                        detail = f"it is cut short or damaged: DALI cannot decode it ({result})"
                        defects[n] = ImageDefect("undecodable", detail)
            if report is not None:
                report(len(group))
    return dict(sorted(defects.items()))


def _look_up(paths: Sequence[str], workers: int) -> list[FileState | ImageDefect]:
    """Ask the file system about each file, without opening it."""

    def look_up(share: NDArray[np.int64]) -> list[FileState | ImageDefect]:
        return [_look_up_one(paths[number]) for number in share.tolist()]

    with ThreadPoolExecutor(workers) as pool:  # a file server answers several at a time
        shares = np.array_split(np.arange(len(paths)), workers)
        return [found for part in pool.map(look_up, shares) for found in part]


def _look_up_one(path: str) -> FileState | ImageDefect:
    """Return what tells a state of a regular file from others, or why it is no file that can be read."""
    try:
        path.encode()  # DALI takes UTF-8
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return ImageDefect("missing", "the file is a link to nothing")
        meant, hint = path.replace("\\", "/"), ""
        if meant != path and os.path.exists(meant):
            hint = f", but {meant} is there: write / for \\ in its file_name"
        return ImageDefect("missing", f"there is no such file{hint}")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return ImageDefect("unreadable", f"the file cannot be read ({error})")
    if not stat.S_ISREG(status.st_mode):
        return ImageDefect("no file", "it is a folder or a device, not a regular file")
    if status.st_size == 0:
        return ImageDefect("empty", "the file has 0 bytes")
    if not os.access(path, os.R_OK):
        return ImageDefect("unreadable", "the file may not be read: its permissions forbid it")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _size_defect(found: tuple[int, int], annotated: tuple[int, ...]) -> ImageDefect | None:
    width, height = found
    if width * height > MAX_PIXELS:
        detail = f"the header says {width}×{height} pixels, more than {MAX_PIXELS:,} in all"
        return ImageDefect("too many pixels", detail)
    if found == annotated:
        return None
    detail = f"the file has {width}×{height} pixels, the annotation file says {annotated[0]}×{annotated[1]}"
    if found == annotated[::-1]:
        detail += ", width and height exchanged: is it meant to be turned?"
    return ImageDefect("size unlike", detail)


def _header_defect(path: str, reason: str) -> ImageDefect:
    """Say what a file is whose header DALI does not read. reason: DALI's, or _NO_RANGE."""
    if reason == _NO_RANGE:
        return ImageDefect("unsupported format", reason)
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


def orientation(picture: Image.Image) -> object:
    """Return the EXIF orientation, 1 to 8 where the file is sound, UPRIGHT where there is none.

    Training does not turn pictures, nor do boxes. Pillow raises almost anything where EXIF data are damaged.
    """
    if picture.format == "PNG" and "exif" not in picture.info:
        return UPRIGHT  # getexif() would decode the picture to look behind the pixels
    return picture.getexif().get(ORIENTATION_TAG, UPRIGHT)


class _DecodeWorker:
    """DALI in a process that may be lost: OpenJPEG crashes on some broken JPEG 2000 headers."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None
        self._fresh = True  # no file was read yet

    def read(self, paths: list[str], decode: bool) -> list[Result]:
        """Return the results of a group of files. decode: read them whole, not their headers alone.

        Where the process is lost, the files are read one by one. That one is bad which is the first of a new
        process and ends it, too: a damaged file may leave the memory in such a state that the next crashes.
        """
        if not paths:
            return []
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=_prepare_worker)
            self._pool.submit(os.getpid).result()  # if it can't start, that is no file's fault
            self._fresh = True
        fresh, self._fresh = self._fresh, False
        try:
            return self._pool.submit(_read_group, paths, decode, self._threads, READ_TIMEOUT_S).result()
        except BrokenProcessPool:
            self.close()
        if len(paths) > 1:
            return [result for path in paths for result in self.read([path], decode)]
        if not fresh:
            return self.read(paths, decode)
        return [f"{CRASHES} {READ_TIMEOUT_S:g} s"]

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _prepare_worker() -> None:
    """Catch what libraries in C print, and end with the parent, however that ends."""
    with tempfile.TemporaryFile() as output:
        for standard_stream in (1, 2):
            os.dup2(output.fileno(), standard_stream)

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _read_group(paths: list[str], decode: bool, threads: int, timeout_s: float) -> list[Result]:
    """Read a group of files in the worker; where DALI fails on it, they are read one by one."""
    os.truncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)  # SIGALRM ends a process that hangs, as a crash does
    try:
        graph = _shape_graph(decode, threads)
        graph.feed_input("paths", [np.frombuffer(path.encode(), np.uint8) for path in paths])
        shapes, starts = graph.run()
    except RuntimeError as error:
        _shape_graph.cache_clear()  # after an error DALI calls a pipeline no longer valid
        if len(paths) == 1:
            return [_printed_reason() or dali_reason(error).partition("\n")[0][:120]]
        return [result for path in paths for result in _read_group([path], decode, threads, timeout_s)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    sizes = [(width, height) for height, width, *_ in np.asarray(shapes.as_cpu().as_array()).tolist()]
    is_tiff = [start.tobytes() in PREFIXES for start in np.asarray(starts.as_cpu().as_array())]
    return [
        _NO_RANGE if tiff and _lacks_range(path) else size
        for path, size, tiff in zip(paths, sizes, is_tiff, strict=True)
    ]


def _lacks_range(tiff: str) -> bool:
    """Tell whether nobody knows which of a TIFF's values is white: ssd.image refuses it, DALI takes 1.0."""
    try:
        with open(tiff, "rb") as file:
            header = file.read(8)
            tags = ImageFileDirectory_v2(header + file.read(8) if header[2] == 43 else header)  # BigTIFF
            file.seek(tags.next)
            tags.load(file)
        return 3 in tags.get(SAMPLEFORMAT, ()) or max(tags.get(BITSPERSAMPLE, (1,))) > 16  # 3: floats
    except Exception:  # Pillow raises almost anything on a damaged header, which DALI judges
        return False


@memoized
def _shape_graph(decode: bool, threads: int) -> Pipeline:
    """Build the graph of files fed as `paths`: each one's (height, width, channels) and first 4 bytes."""
    # prefetch_queue_depth=1: nothing is read ahead, so messages, and a crash, are the current group's.
    pipeline = Pipeline(batch_size=_GROUP, num_threads=threads, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        files = fn_file.read(fn.external_source(name="paths", device="cpu"))
        if decode:  # as in data.graph; what follows there, resizing, fails on no picture
            pictures = fn.decoders.image_slice(
                files, device="cpu", rel_start=[0.0, 0.0], rel_shape=[1.0, 1.0], adjust_orientation=False
            )
            shapes = pictures.shape()
        else:
            shapes = fn.peek_image_shape(files, adjust_orientation=False)
        pipeline.set_outputs(shapes, fn.slice(files, 0, 4, axes=[0]))
    return pipeline


def _printed_reason() -> str:
    """Return the first line that the decoders printed, without colours and without where it comes from."""
    printed = re.sub(r"\x1b\[[\d;]*m", "", os.pread(2, 10_000, 0).decode(errors="replace")).strip()
    source = r"^(\[[^\]]*\]\s*)+(global \S+ \S+ )?(.* error: \([^)]*\) )?"  # [library], OpenCV's line
    return re.sub(source, "", printed.partition("\n")[0], count=1)[:120]
