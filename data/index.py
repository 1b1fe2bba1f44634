"""What of an annotation file is used: a Selection of it → a CocoIndex, boxes relative to the image.

The parsed file is kept in data.cache: the first process of all ranks parses it, the others wait and map what
it wrote. Damage to what is kept is noticed.
"""

import hashlib
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ssd.annotations import FIXES, Annotations, FileNames, inside_px, read_annotations
from ssd.categories import Categories
from ssd.errors import UserError

FORMAT = 2
"""Of parsed files in the cache. Count it up whenever other arrays, or other values, follow from a file."""

CLOCK_TICK_S = 0.05
"""Two changes of a file within a tick of the file system's clock carry the same time."""

OUTDATED_AFTER_S = 3600.0
"""An older entry of a file that has changed is deleted. A younger one may be in use: machines that share a
cache, but not the annotation file, each have one of their own."""


@dataclass(frozen=True)
class Source:
    """Where a data set lies, and which overrides say so."""

    annotation_file: Path
    image_folder: Path
    split: Literal["train", "val"]

    @property
    def annotations_key(self) -> str:
        """The override that names the annotation file."""
        return f"data.{self.split}_annotations"

    @property
    def images_key(self) -> str:
        """The override that names the image folder."""
        return f"data.{self.split}_images"

    def error(self, what: str) -> UserError:
        """Return the error of something in the annotation file."""
        return UserError(f"{self.annotations_key}={self.annotation_file}: {what}")


@dataclass(frozen=True)
class Selection:
    """Which images and boxes of an annotation file are used; the defaults are for training.

    split: "train" or "val", the override keys that errors name.
    limit: use only the first images of the file, this many, at least 1; None uses all.
    crowd_boxes: use boxes marked iscrowd (RECIPE 6).
    min_box_px: drop boxes that are narrower or lower than this inside the image, in pixels (RECIPE 9).
    images_without_boxes: keep them; an evaluation needs every image of the file (RECIPE 9).
    """

    split: Literal["train", "val"] = "train"
    limit: int | None = None
    crowd_boxes: bool = True
    min_box_px: float = 1.0
    images_without_boxes: bool = False


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The images of a data set in the order of its annotation file, and their boxes.

    source: where the data set lies; the file names are relative to its image folder.
    categories: label k + 1 is the file's k-th category. file_names: N.
    image_ids: N int64, the annotation file's. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1].
    boxes_ltrb: float32, relative to the image, in [0, 1]. labels: int32, 1 … K, a row a box.
    dropped: what of the file is not used, as reason → count.
    """

    source: Source
    categories: Categories
    file_names: FileNames
    image_ids: NDArray[np.int64]
    sizes_px: NDArray[np.int64]
    box_starts: NDArray[np.int64]
    boxes_ltrb: NDArray[np.float32]
    labels: NDArray[np.int32]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, image: int) -> str:
        """Return the path of an image file."""
        return os.path.join(self.source.image_folder, self.file_names[image])

    def paths(self) -> dict[int, str]:
        """Return the path of each image file by the image's id."""
        return {image_id: self.path(image) for image, image_id in enumerate(self.image_ids.tolist())}

    def boxes_of(self, image: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return an image's boxes G×4 ltrb and labels G."""
        rows = slice(self.box_starts[image], self.box_starts[image + 1])
        return self.boxes_ltrb[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """Return a sha256 hex digest of all that training depends on, but not of where the folder lies."""
        digest = hashlib.sha256()
        digest.update(repr(self.categories.ids).encode())
        digest.update(repr(self.categories.names).encode())
        digest.update(repr(tuple(self.file_names)).encode())
        for array in (self.image_ids, self.sizes_px, self.box_starts, self.boxes_ltrb, self.labels):
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def read_index(
    annotation_file: Path, image_folder: Path, selection: Selection | None = None, cache: Path | None = None
) -> CocoIndex:
    """Read an annotation file, check all of it, and keep what `selection` says, boxes clipped to the image.

    cache: the folder of parsed files; None parses the file. Whether the image files can be used is another
    question. Raises UserError naming the file, the entry and the fix, or the cache that can't be used.
    """
    selection = selection or Selection()
    source = Source(annotation_file, image_folder, selection.split)
    if cache is None:
        return select(read_annotations(annotation_file, source.annotations_key), source, selection)
    return select(open_annotations(source, cache), source, selection)


def select(annotations: Annotations, source: Source, selection: Selection) -> CocoIndex:
    """Keep what the selection wants of a parsed file, in memory of the index's own.

    Raises UserError where no image is left.
    """
    images = min(len(annotations), selection.limit or len(annotations))
    dropped = {"images beyond data.limit": len(annotations) - images}
    box_starts = annotations.box_starts[: images + 1]
    image_of = np.repeat(np.arange(images), np.diff(box_starts))
    wanted, dropped_boxes = _wanted_boxes(annotations, image_of, selection)
    dropped |= dropped_boxes
    rows = np.flatnonzero(wanted)
    box_starts = np.searchsorted(rows, box_starts)  # the dropped boxes are counted no more
    kept = np.zeros(len(annotations), dtype=np.bool_)
    kept[:images] = (np.diff(box_starts) > 0) | selection.images_without_boxes
    dropped["images without boxes"] = images - int(kept.sum())
    if not kept.any():
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise source.error(
            f"no image with a box is left; not used: {reasons}; name another with {source.annotations_key}="
        )
    return CocoIndex(
        source=source,
        categories=annotations.categories,
        file_names=annotations.file_names.where(kept),
        image_ids=annotations.image_ids[kept],
        sizes_px=annotations.sizes_px[kept],
        box_starts=np.append(box_starts[:-1][kept[:images]], len(rows)),
        boxes_ltrb=_relative_ltrb(annotations.boxes_ltwh_px[rows], annotations.sizes_px[image_of[rows]]),
        labels=annotations.labels[rows],
        dropped=dropped,
    )


def _wanted_boxes(
    annotations: Annotations, image_of: NDArray[np.int64], selection: Selection
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Return which boxes of the first images the selection wants, and how many it doesn't, by the reason."""
    dropped: dict[str, int] = {}
    boxes = len(image_of)
    boxes_ltwh_px = annotations.boxes_ltwh_px[:boxes]
    wanted = np.ones(boxes, dtype=np.bool_)
    if not selection.crowd_boxes:
        wanted &= ~annotations.crowd[:boxes]
        dropped["crowd boxes"] = boxes - int(wanted.sum())
    shorter = boxes_ltwh_px[:, 2:].min(axis=1)
    small = wanted & ((shorter < selection.min_box_px) | (shorter <= 0))
    wanted &= ~small
    shorter = inside_px(boxes_ltwh_px, annotations.sizes_px[image_of]).min(axis=1)
    outside: NDArray[np.bool_] = wanted & ((shorter < selection.min_box_px) | (shorter <= 0))
    dropped[f"boxes under {selection.min_box_px:g} px"] = int(small.sum())
    dropped[f"boxes with under {selection.min_box_px:g} px inside the image"] = int(outside.sum())
    return wanted & ~outside, dropped


def _relative_ltrb(boxes_px: NDArray[np.float64], sizes_px: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turn boxes ltwh in pixels into ltrb relative to their images' sizes, clipped: B×4, in their memory."""
    left_top, right_bottom = boxes_px[:, :2], boxes_px[:, 2:]
    with np.errstate(over="ignore"):  # of sides like 1e308
        right_bottom += left_top
    np.minimum(right_bottom, sizes_px, out=right_bottom)
    np.maximum(left_top, 0, out=left_top)
    right_bottom /= sizes_px
    left_top /= sizes_px
    return boxes_px.astype(np.float32)


def cache_folder(given: str | None) -> Path:
    """Return data.cache as given; where it is null, ssd-trainer in the user's cache folder.

    Raises UserError where the user has no home.
    """
    if given is not None:
        return Path(given)
    user_folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(user_folder):  # others are to be ignored, says the XDG specification
        return Path(user_folder, "ssd-trainer")
    try:
        return Path.home() / ".cache" / "ssd-trainer"
    except RuntimeError as error:
        raise UserError(
            "data.cache=null: there is no home folder to keep parsed annotation files in; give data.cache=DIR"
        ) from error


def open_annotations(source: Source, cache: Path) -> Annotations:
    """Return read_annotations of the source in mapped memory; parse the file where the cache has no entry.

    An entry is replaced as a whole, so reading takes no lock. Raises UserError.
    """
    try:
        entry = _entry(source, cache)
        annotations = _map(entry)
        if annotations is None:
            cache.mkdir(parents=True, exist_ok=True)
            name = entry.name.partition("-")[0]
            with FileLock(cache / f"{name}.lock"):
                annotations = _map(entry)  # another process may have been first
                if annotations is None:
                    age = time.time() - source.annotation_file.stat().st_ctime
                    time.sleep(min(max(CLOCK_TICK_S - age, 0), CLOCK_TICK_S))
                    _write(entry, read_annotations(source.annotation_file, source.annotations_key))
                    for other in cache.glob(f"{name}-*"):
                        if other != entry and other.stat().st_mtime < time.time() - OUTDATED_AFTER_S:
                            shutil.rmtree(other)
                    annotations = _map(entry)  # from here on all ranks share the same memory
        if annotations is None:
            raise OSError("an entry reads back other than it was written")
    except OSError as error:
        raise UserError(
            f"data.cache={cache}: can't be used ({error.strerror or error}); "
            "name a folder that can be written to with data.cache=DIR"
        ) from error
    return annotations


def _entry(source: Source, cache: Path) -> Path:
    """Return the folder in the cache that belongs to the annotation file in its present state."""
    path = os.path.realpath(source.annotation_file)
    try:
        state = os.stat(path)
    except OSError as error:
        raise source.error(f"it cannot be read ({error.strerror}); {FIXES['unreadable_file']}") from error
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    # Size and mtime may come back after a change (cp -p, rsync -t); what the kernel counts by itself doesn't.
    times = f"{state.st_mtime_ns}-{state.st_ctime_ns}"
    return cache / f"{name}-{state.st_size}-{times}-{state.st_ino}.v{FORMAT}"


def _write(entry: Path, annotations: Annotations) -> None:
    """Write an entry, which appears whole or not at all. Of several processes one alone may write it."""
    arrays = {name: value for name, value in vars(annotations).items() if isinstance(value, np.ndarray)}
    arrays["file_name_bytes"] = annotations.file_names.utf8
    arrays["file_name_starts"] = annotations.file_names.starts
    temporary = entry.with_name(f"{entry.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    try:
        temporary.mkdir()
        (temporary / "about.json").write_bytes(msgspec.json.encode(annotations.categories.as_plain()))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        checksums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
        (temporary / "checksums.json").write_bytes(msgspec.json.encode(checksums))
        shutil.rmtree(entry, ignore_errors=True)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _map(entry: Path) -> Annotations | None:
    """Return what _write wrote, arrays read-only in mapped memory; None for no entry or a damaged one."""
    try:
        checksums = msgspec.json.decode((entry / "checksums.json").read_bytes(), type=dict[str, int])
        # Of all bytes, since what was damaged must not become wrong boxes; it checks gigabytes a second.
        if any(_checksum(entry / name) != checksum for name, checksum in checksums.items()):
            return None
        categories = Categories.from_plain(msgspec.json.decode((entry / "about.json").read_bytes()))
        arrays = {
            name.removesuffix(".npy"): np.load(entry / name, mmap_mode="r")
            for name in checksums
            if name.endswith(".npy")
        }
    except (FileNotFoundError, ValueError, msgspec.DecodeError):
        return None
    names = FileNames(arrays.pop("file_name_bytes"), arrays.pop("file_name_starts"))
    return Annotations(categories, names, **arrays)


def _checksum(file: Path) -> int:
    return zlib.crc32(np.memmap(file, dtype=np.uint8, mode="r").data)
