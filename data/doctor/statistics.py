"""Figures of a split: boxes by class, and their sizes against the default boxes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.doctor.annotations import ReadBoxes
from data.graph import MATCH_IOU
from ssd.boxes import BOXES_PER_CELL, IMAGE_SIZE, MAP_SIZES, SCALES_PX, default_boxes


@dataclass(frozen=True)
class SizeClass:
    """Boxes whose side, the root of their area at 300×300 pixels, lies in from_px ≤ side < to_px."""

    from_px: float
    to_px: float
    boxes: int
    unmatched: int


@dataclass(frozen=True)
class Statistics:
    """What a split holds that training uses. boxes and the rest count used boxes, crowd ones included.

    boxes_of_class: category name → boxes, in the order of the file.
    unmatched: boxes that no default box overlaps with an IoU above 0.5; each still claims its best one.
    """

    images: int
    images_without_boxes: int
    boxes: int
    crowd_boxes: int
    boxes_of_class: dict[str, int]
    sizes: list[SizeClass]
    unmatched: int


def describe(boxes: ReadBoxes, names: list[str], images: int) -> Statistics:
    """Count. boxes: the used ones. names: of the categories. images: listed ones."""
    per_class = np.bincount(boxes.categories, minlength=len(names))
    boxes_of_class: dict[str, int] = {}
    for name, count in zip(names, per_class.tolist(), strict=True):
        boxes_of_class[name] = boxes_of_class.get(name, 0) + count
    boxes_cxcywh = _relative_cxcywh(boxes)
    unmatched = best_ious(boxes_cxcywh) <= MATCH_IOU
    return Statistics(
        images=images,
        images_without_boxes=images - len(np.unique(boxes.images)),
        boxes=len(boxes.places),
        crowd_boxes=int(boxes.crowd.sum()),
        boxes_of_class=boxes_of_class,
        sizes=_size_classes(boxes_cxcywh, unmatched),
        unmatched=int(unmatched.sum()),
    )


def best_ious(boxes_cxcywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the highest IoU of each box B×4, relative to the image, with any default box.

    A default box of one shape overlaps most where its centre is nearest, in each axis by itself: so only one
    of each shape's cells is looked at, 30 boxes for 8732.
    """
    best = np.zeros(len(boxes_cxcywh))
    start = 0
    defaults = default_boxes().double().numpy()
    for cells, shapes in zip(MAP_SIZES, BOXES_PER_CELL, strict=True):
        grid = defaults[start : start + shapes * cells**2].reshape(shapes, cells, cells, 4)
        start += shapes * cells**2
        for shape in grid:
            nearest_x = _nearest(boxes_cxcywh[:, 0], shape[0, :, 0])
            nearest_y = _nearest(boxes_cxcywh[:, 1], shape[:, 0, 1])
            best = np.maximum(best, _ious(boxes_cxcywh, shape[nearest_y, nearest_x]))
    return best


def _nearest(centres: NDArray[np.float64], cells: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.searchsorted((cells[:-1] + cells[1:]) / 2, centres)


def _ious(boxes_cxcywh: NDArray[np.float64], others_cxcywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each box with the other one in its row: B×4 and B×4 → B."""
    half, other_half = boxes_cxcywh[:, 2:] / 2, others_cxcywh[:, 2:] / 2
    right_bottom = np.minimum(boxes_cxcywh[:, :2] + half, others_cxcywh[:, :2] + other_half)
    left_top = np.maximum(boxes_cxcywh[:, :2] - half, others_cxcywh[:, :2] - other_half)
    shared = np.maximum(right_bottom - left_top, 0).prod(axis=1)
    ious: NDArray[np.float64] = shared / (
        boxes_cxcywh[:, 2:].prod(axis=1) + others_cxcywh[:, 2:].prod(axis=1) - shared
    )
    return ious


def _relative_cxcywh(boxes: ReadBoxes) -> NDArray[np.float64]:
    """Return the part of each box that lies inside its image."""
    size = boxes.inside_px
    left_top = np.maximum(boxes.ltwh_px[:, :2], 0)
    return np.concatenate((left_top + size / 2, size), axis=1) / np.tile(boxes.sizes_px, 2)


def _size_classes(boxes_cxcywh: NDArray[np.float64], unmatched: NDArray[np.bool_]) -> list[SizeClass]:
    """Sort boxes by the scales of the default boxes (RECIPE 2)."""
    sides_px = IMAGE_SIZE * np.sqrt(boxes_cxcywh[:, 2:].prod(axis=1))
    limits = (0, *SCALES_PX)
    sizes = np.searchsorted(limits[1:-1], sides_px, side="right")  # the last holds all that are larger
    counts = np.bincount(sizes, minlength=len(limits) - 1)
    missed = np.bincount(sizes[unmatched], minlength=len(limits) - 1)
    return [
        SizeClass(low, high, int(boxes), int(lost))
        for low, high, boxes, lost in zip(limits, limits[1:], counts, missed, strict=False)
    ]
