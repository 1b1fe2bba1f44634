"""Which images and boxes of an annotation file are used: a CocoIndex, with boxes relative to the image.

The parsed file is cached in data.cache: the first process of all ranks parses the file and writes the entry,
and the others wait and read the entry. A damaged entry is detected.
"""

import hashlib
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ssd.annotations import Annotations, inside_px, read_annotations
from ssd.categories import Categories
from ssd.errors import UserError

FORMAT = 3
"""Format of cache entries. Increment it whenever a file is parsed into different arrays or values."""

OUTDATED_AFTER_S = 3600.0
"""Entries older than this are deleted once their file has changed. A newer one may be in use: machines that
share a cache but not the annotation file each have their own entry."""


@dataclass(frozen=True)
class Source:
    """Where a data set is, and which overrides set it."""

    annotation_file: Path
    image_folder: Path
    split: Literal["train", "val"]

    @property
    def annotations_key(self) -> str:
        """The override that sets the annotation file."""
        return f"data.{self.split}_annotations"

    def read(self) -> Annotations:
        """Parse the annotation file. Raises UserError for the first defect."""
        return read_annotations(self.annotation_file, self.annotations_key)

    def error(self, what: str) -> UserError:
        """Return a UserError about the annotation file."""
        return UserError(f"{self.annotations_key}={self.annotation_file}: {what}")


@dataclass(frozen=True)
class Selection:
    """Which images and boxes of an annotation file are used; the defaults are for training.

    split: "train" or "val"; errors name the override of this split.
    limit: use only this many images, the first of the file; at least 1. None uses all.
    crowd_boxes: use boxes marked iscrowd (RECIPE 6).
    min_box_px: drop boxes whose part inside the image is narrower or shorter than this, in px (RECIPE 9).
    images_without_boxes: keep images without boxes; an evaluation needs every image of the file (RECIPE 9).
    """

    split: Literal["train", "val"] = "train"
    limit: int | None = None
    crowd_boxes: bool = True
    min_box_px: float = 1.0
    images_without_boxes: bool = False


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The N images of a data set in the order of its annotation file, and their boxes.

    source: where the data set is. categories: label k + 1 is the file's k-th category.
    file_names: N, in UTF-8, relative to the image folder.
    image_ids: N int64, from the annotation file. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1].
    boxes_ltrb: B×4 float32, relative to the image, in [0, 1]. labels: B int32, 1 … K.
    dropped: how many images and boxes of the file are not used, as reason → count.
    """

    source: Source
    categories: Categories
    file_names: NDArray[np.bytes_]
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
        return os.path.join(self.source.image_folder, self.file_names[image].decode())

    def paths(self) -> dict[int, str]:
        """Return the path of each image file, as image id → path."""
        return {image_id: self.path(image) for image, image_id in enumerate(self.image_ids.tolist())}

    def boxes_of(self, image: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return an image's boxes G×4 ltrb and labels G."""
        rows = slice(self.box_starts[image], self.box_starts[image + 1])
        return self.boxes_ltrb[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """Return a sha256 hex digest of everything that training depends on, without the folder's path."""
        digest = hashlib.sha256()
        digest.update(repr(self.categories.ids).encode())
        digest.update(repr(self.categories.names).encode())
        digest.update(repr(tuple(name.decode() for name in self.file_names)).encode())
        for array in (self.image_ids, self.sizes_px, self.box_starts, self.boxes_ltrb, self.labels):
            digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def read_index(
    annotation_file: Path, image_folder: Path, selection: Selection | None = None, cache: Path | None = None
) -> CocoIndex:
    """Read and check a whole annotation file, keep what `selection` says, and clip the boxes to the image.

    cache: the folder of parsed files; None always parses the file. The image files are not checked.
    Raises UserError naming the file, the entry and the fix, or the cache if it can't be used.
    """
    selection = selection or Selection()
    source = Source(annotation_file, image_folder, selection.split)
    annotations = open_annotations(source, cache) if cache else source.read()
    return select(annotations, source, selection)


def select(annotations: Annotations, source: Source, selection: Selection) -> CocoIndex:
    """Keep the selected images and boxes of a parsed file. The index shares no memory with it.

    Raises UserError if no image is left.
    """
    images = min(len(annotations), selection.limit or len(annotations))
    dropped = {"images beyond data.limit": len(annotations) - images}
    box_starts = annotations.box_starts[: images + 1]
    image_of = np.repeat(np.arange(images), np.diff(box_starts))
    wanted, dropped_boxes = _wanted_boxes(annotations, image_of, selection)
    dropped |= dropped_boxes
    rows = np.flatnonzero(wanted)
    box_starts = np.searchsorted(rows, box_starts)  # recounted without the dropped boxes
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
        file_names=annotations.file_names[kept],
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
    """Return which boxes of the first images to keep, and how many are dropped, as reason → count."""
    boxes = len(image_of)
    boxes_ltwh_px = annotations.boxes_ltwh_px[:boxes]
    inside = inside_px(boxes_ltwh_px, annotations.sizes_px[image_of])
    least_px = max(selection.min_box_px, np.nextafter(0, 1))  # boxes of zero area are never used
    unwanted = {
        "crowd boxes": annotations.crowd[:boxes] & (not selection.crowd_boxes),
        f"boxes under {selection.min_box_px:g} px": boxes_ltwh_px[:, 2:].min(axis=1) < least_px,
        f"boxes with under {selection.min_box_px:g} px inside the image": inside.min(axis=1) < least_px,
    }
    wanted = np.ones(boxes, dtype=np.bool_)
    dropped = {}
    for reason, of_boxes in unwanted.items():
        dropped[reason] = int((wanted & of_boxes).sum())
        wanted &= ~of_boxes
    return wanted, dropped


def _relative_ltrb(boxes_px: NDArray[np.float64], sizes_px: NDArray[np.int64]) -> NDArray[np.float32]:
    """Convert boxes ltwh in pixels to ltrb relative to the image, clipped: B×4. Overwrites boxes_px."""
    left_top, right_bottom = boxes_px[:, :2], boxes_px[:, 2:]
    with np.errstate(over="ignore"):  # for sides like 1e308
        right_bottom += left_top
    np.minimum(right_bottom, sizes_px, out=right_bottom)
    np.maximum(left_top, 0, out=left_top)
    right_bottom /= sizes_px
    left_top /= sizes_px
    return boxes_px.astype(np.float32)


def cache_folder(given: str | None) -> Path:
    """Return data.cache, or ssd-trainer in the user's cache folder if it is null.

    Raises UserError if the user has no home folder.
    """
    if given is not None:
        return Path(given)
    user_folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if user_folder.startswith("~"):
        raise UserError(
            "data.cache=null: there is no home folder to keep parsed annotation files in; give data.cache=DIR"
        )
    return Path(user_folder, "ssd-trainer")


def open_annotations(source: Source, cache: Path) -> Annotations:
    """Return the source's parsed annotation file from the cache; on a miss, parse the file and cache it.

    Entries are written atomically, so reading takes no lock. Raises UserError.
    """
    path = Path(os.path.realpath(source.annotation_file))
    if not path.is_file():
        return source.read()  # which reports what is wrong
    state = path.stat()
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    # Size and mtime can survive a change (cp -p, rsync -t); ctime and inode number together can't.
    times = f"{state.st_mtime_ns}-{state.st_ctime_ns}"
    entry = cache / f"{name}-{state.st_size}-{times}-{state.st_ino}.v{FORMAT}.npz"
    try:
        annotations = _load(entry)
        if annotations is None:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{name}.lock"):
                annotations = _load(entry)  # another process may have written it
                if annotations is None:
                    annotations = source.read()
                    _save(entry, annotations)
                    for other in cache.glob(f"{name}-*.npz"):
                        if other.stat().st_mtime < time.time() - OUTDATED_AFTER_S:
                            other.unlink()
    except OSError as error:
        raise UserError(
            f"data.cache={cache}: can't be used ({error.strerror or error}); "
            "name a folder that can be written to with data.cache=DIR"
        ) from error
    return annotations


def _save(entry: Path, annotations: Annotations) -> None:
    """Write an entry atomically. Only one process at a time may write it."""
    categories = np.frombuffer(msgspec.json.encode(annotations.categories.as_plain()), dtype=np.uint8)
    temporary = entry.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **(vars(annotations) | {"categories": categories}))
    temporary.replace(entry)


def _load(entry: Path) -> Annotations | None:
    """Return what _save wrote; None if the entry is missing or damaged."""
    arrays = {}
    try:
        with zipfile.ZipFile(entry) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file)
                    file.read()  # to the end, where zipfile checks the CRC: no wrong boxes from damage
        categories = Categories.from_plain(msgspec.json.decode(arrays.pop("categories").tobytes()))
        return Annotations(categories=categories, **arrays)
    except Exception:  # zipfile raises many kinds of errors for damage
        return None
