"""An annotation file as arrays: parsed, checked, and cleaned as far as that needs no config value."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.clipping import inside_px
from data.coco_checks import Boxes, check_annotations, check_categories, check_images
from data.coco_json import Source, read_document
from data.file_names import FileNames
from ssd.categories import Categories


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of an annotation file in its order, and every box of theirs.

    categories: label k + 1 is the file's k-th category. file_names: N.
    image_ids: N int64. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1].
    boxes_ltrb: float32, clipped to the image and relative to it. labels: int32, 1 … K. crowd: bool.
    shorter_sides_px: B×2 float64, of the box as it stands in the file and of what lies inside the image; only
    where both are above 0 is boxes_ltrb a box.
    """

    categories: Categories
    file_names: FileNames
    image_ids: NDArray[np.int64]
    sizes_px: NDArray[np.int64]
    box_starts: NDArray[np.int64]
    boxes_ltrb: NDArray[np.float32]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    shorter_sides_px: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image_ids)


def read_annotations(source: Source) -> Annotations:
    """Parse and check a whole annotation file.

    Raises UserError, naming the file, the entry and what mends it.
    """
    document = read_document(source)
    categories = check_categories(document.categories, source)
    image_ids, sizes_px = check_images(document.images, source)
    file_names = FileNames.of(image.file_name for image in document.images)
    boxes = check_annotations(document.annotations, image_ids, categories, source)
    del document  # of a large file it is gigabytes

    in_image_order = np.argsort(boxes.images, kind="stable")  # of one image, in the order of the file
    boxes = boxes.where(in_image_order)
    boxes_ltrb, shorter_sides_px = _clip(boxes, sizes_px)
    return Annotations(
        categories=categories,
        file_names=file_names,
        image_ids=image_ids,
        sizes_px=sizes_px,
        box_starts=np.searchsorted(boxes.images, np.arange(len(image_ids) + 1)).astype(np.int64),
        boxes_ltrb=boxes_ltrb,
        labels=boxes.labels,
        crowd=boxes.crowd,
        shorter_sides_px=shorter_sides_px,
    )


def _clip(boxes: Boxes, sizes_px: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Clip to the image and divide by its size; measure the shorter side before and after."""
    image_size = sizes_px[boxes.images]
    left_top, size = boxes.ltwh_px[:, :2], boxes.ltwh_px[:, 2:]
    inside = inside_px(boxes.ltwh_px, image_size)
    shorter_sides_px = np.stack((size.min(axis=1), inside.min(axis=1)), axis=1)
    with np.errstate(over="ignore"):  # of sides like 1e308: what lies outside is not used
        right_bottom = np.minimum(left_top + size, image_size)
        clipped = np.concatenate((np.maximum(left_top, 0), right_bottom), axis=1)
        return (clipped / np.tile(image_size, 2)).astype(np.float32), shorter_sides_px
