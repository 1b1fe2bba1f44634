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

from data.coco_checks import Boxes, check_annotations, check_categories, check_files, check_images
from data.coco_json import Source, read_document
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

    categories: label k + 1 is the file's k-th category.
    image_folder: what the file names are relative to. file_names: N.
    image_ids: N int64, the annotation file's. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1].
    boxes_ltrb: float32, relative to the image, in [0, 1]. labels: int32, 1 … K, a row a box.
    dropped: what of the file is not used, as reason → count.
    """

    categories: Categories
    image_folder: Path
    file_names: tuple[str, ...]
    image_ids: NDArray[np.int64]
    sizes_px: NDArray[np.int64]
    box_starts: NDArray[np.int64]
    boxes_ltrb: NDArray[np.float32]
    labels: NDArray[np.int32]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, image: int) -> str:
        """Return the path of an image file."""
        return os.path.join(self.image_folder, self.file_names[image])

    def boxes_of(self, image: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return an image's boxes G×4 ltrb and labels G."""
        rows = slice(self.box_starts[image], self.box_starts[image + 1])
        return self.boxes_ltrb[rows], self.labels[rows]

    def fingerprint(self) -> str:
        """Return a sha256 hex digest of all that training depends on, but not of where the folder lies."""
        digest = hashlib.sha256()
        for text in (self.categories.ids, self.categories.names, self.file_names):
            digest.update(repr(text).encode())
        for array in (self.image_ids, self.sizes_px, self.box_starts, self.boxes_ltrb, self.labels):
            digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()


def read_index(annotation_file: Path, image_folder: Path, selection: Selection | None = None) -> CocoIndex:
    """Read an annotation file, check all of it, and keep what `selection` says, boxes clipped to the image.

    With a limit only that many image files must exist; the annotation file is checked as a whole.
    Raises DatasetError, naming the file, the entry and what mends it.
    """
    selection = selection or Selection()
    source = Source(annotation_file, image_folder, selection.split)
    document = read_document(source)
    categories = check_categories(document.categories, source)
    image_ids, sizes_px = check_images(document.images, source)
    boxes = check_annotations(document.annotations, image_ids, categories, source)
    file_names = tuple(image.file_name for image in document.images[: selection.limit])
    check_files(file_names, source)

    boxes, dropped = _clean(boxes, sizes_px, len(file_names), selection)
    per_image = np.bincount(boxes.images, minlength=len(file_names))
    kept = np.flatnonzero((per_image > 0) | selection.images_without_boxes)
    dropped["images without boxes"] = len(file_names) - len(kept)
    if len(kept) == 0:
        raise source.error(
            f"no image with a box is left, dropped: {dropped}; name another with {source.annotations_key}="
        )
    in_image_order = np.argsort(boxes.images, kind="stable")  # of one image, in the order of the file
    return CocoIndex(
        categories=categories,
        image_folder=image_folder,
        file_names=tuple(file_names[image] for image in kept.tolist()),
        image_ids=image_ids[kept],
        sizes_px=sizes_px[kept],
        box_starts=np.concatenate(([0], np.cumsum(per_image[kept]))),
        boxes_ltrb=_relative_ltrb(boxes, sizes_px)[in_image_order],
        labels=boxes.labels[in_image_order],
        dropped=dropped,
    )


def _clean(
    boxes: Boxes, sizes_px: NDArray[np.int64], images: int, selection: Selection
) -> tuple[Boxes, dict[str, int]]:
    """Drop what the selection does not want, of the first `images` images; count it by reason."""
    dropped = {"images beyond data.limit": len(sizes_px) - images}
    boxes = boxes.where(boxes.images < images)
    if not selection.crowd_boxes:
        dropped["crowd boxes"] = int(boxes.crowd.sum())
        boxes = boxes.where(~boxes.crowd)
    left_top, size = boxes.ltwh_px[:, :2], boxes.ltwh_px[:, 2:]
    right_bottom = left_top + size
    # What hangs over is taken off the size: a box inside keeps the exact size that the file gives.
    over = np.maximum(-left_top, 0) + np.maximum(right_bottom - sizes_px[boxes.images], 0)
    small = ((size < selection.min_box_px) | (size <= 0)).any(axis=1)
    outside = ((size - over < selection.min_box_px) | (size - over <= 0)).any(axis=1) & ~small
    dropped[f"boxes under {selection.min_box_px:g} px"] = int(small.sum())
    dropped[f"boxes with under {selection.min_box_px:g} px inside the image"] = int(outside.sum())
    return boxes.where(~small & ~outside), dropped


def _relative_ltrb(boxes: Boxes, sizes_px: NDArray[np.int64]) -> NDArray[np.float32]:
    """Clip to the image and divide by its size."""
    size = sizes_px[boxes.images]
    left_top = np.maximum(boxes.ltwh_px[:, :2], 0)
    right_bottom = np.minimum(boxes.ltwh_px[:, :2] + boxes.ltwh_px[:, 2:], size)
    return (np.concatenate((left_top, right_bottom), axis=1) / np.tile(size, 2)).astype(np.float32)
