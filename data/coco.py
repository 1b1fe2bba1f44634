"""A COCO annotation file and its image folder → a checked index: NumPy arrays, boxes relative to the image.

What DALI's own reader lets pass in silence (unknown categories or images, duplicate ids, truncated files) is
an error here; boxes that leave the image are clipped.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.annotation_cache import open_annotations
from data.annotations import Annotations, read_annotations
from data.coco_json import Source
from data.file_names import FileNames
from ssd.categories import Categories
from ssd.errors import UserError


@dataclass(frozen=True)
class Selection:
    """Which images and boxes of an annotation file are used; the defaults are for training.

    split: "train" or "val", the override keys that errors name.
    limit: use only the first images of the file, this many; None uses all.
    crowd_boxes: use boxes marked iscrowd (RECIPE 6).
    min_box_px: drop boxes that are narrower or lower than this inside the image, in pixels (RECIPE 9).
    images_without_boxes: keep them; an evaluation needs every image of the file (RECIPE 9).
    """

    split: Literal["train", "val"] = "train"
    limit: int | None = None
    crowd_boxes: bool = True
    min_box_px: float = 1.0
    images_without_boxes: bool = False

    def __post_init__(self) -> None:
        """Refuse a limit that Python would count from the end of the file."""
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit={self.limit}: give at least 1 image, or null for all")


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

    cache: the folder of data.annotation_cache; None parses the file anew.
    Whether the image files are there is another question (data.pictures).
    Raises UserError, naming the file, the entry and what mends it; UserError for an unusable cache folder.
    """
    selection = selection or Selection()
    source = Source(annotation_file, image_folder, selection.split)
    annotations = read_annotations(source) if cache is None else open_annotations(source, cache)
    return select(annotations, source, selection)


def select(annotations: Annotations, source: Source, selection: Selection) -> CocoIndex:
    """Keep what the selection wants of a parsed file, in memory of the index's own.

    Raises UserError where no image is left.
    """
    images = min(len(annotations), selection.limit or len(annotations))
    dropped = {"images beyond data.limit": len(annotations) - images}
    box_starts = annotations.box_starts[: images + 1]
    kept_boxes = _wanted_boxes(annotations, int(box_starts[-1]), selection, dropped)
    rows = np.flatnonzero(kept_boxes)
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
        boxes_ltrb=annotations.boxes_ltrb[rows],
        labels=annotations.labels[rows],
        dropped=dropped,
    )


def _wanted_boxes(
    annotations: Annotations, boxes: int, selection: Selection, dropped: dict[str, int]
) -> NDArray[np.bool_]:
    """Return which of the first `boxes` boxes the selection wants; count the others in `dropped`."""
    wanted = np.ones(boxes, dtype=np.bool_)
    if not selection.crowd_boxes:
        wanted &= ~annotations.crowd[:boxes]
        dropped["crowd boxes"] = boxes - int(wanted.sum())
    whole, inside = annotations.shorter_sides_px[:boxes].T
    small = wanted & ((whole < selection.min_box_px) | (whole <= 0))
    wanted &= ~small
    outside: NDArray[np.bool_] = wanted & ((inside < selection.min_box_px) | (inside <= 0))
    dropped[f"boxes under {selection.min_box_px:g} px"] = int(small.sum())
    dropped[f"boxes with under {selection.min_box_px:g} px inside the image"] = int(outside.sum())
    wanted &= ~outside
    return wanted
