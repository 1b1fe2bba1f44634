"""Figures of a split: boxes by class, and their sizes against the default boxes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.graph import MATCH_IOU
from ssd.annotations import Annotations, inside_px
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


def describe(annotations: Annotations, used: NDArray[np.bool_]) -> Statistics:
    """Count the boxes that training uses: B. Boxes of two categories with one name are counted together."""
    images, labels = annotations.images[used], annotations.labels[used]
    ltwh_px, sizes_px = annotations.boxes_ltwh_px[used], annotations.sizes_px[images]
    inside = inside_px(ltwh_px, sizes_px)
    centers = np.maximum(ltwh_px[:, :2], 0) + inside / 2
    boxes_cxcywh = np.concatenate((centers, inside), axis=1) / np.tile(sizes_px, 2)
    names = annotations.categories.names
    boxes_of_class = dict.fromkeys(names, 0)
    for name, count in zip(names, np.bincount(labels, minlength=len(names) + 1)[1:].tolist(), strict=True):
        boxes_of_class[name] += count
    unmatched = best_ious(boxes_cxcywh) <= MATCH_IOU
    sides_px = IMAGE_SIZE * np.sqrt(boxes_cxcywh[:, 2:].prod(axis=1))
    limits_px = (0, *SCALES_PX)  # of the default boxes (RECIPE 2); the last class holds all that are larger
    sizes = np.searchsorted(limits_px[1:-1], sides_px, side="right")
    counts = np.bincount(sizes, minlength=len(SCALES_PX)).tolist()
    counts_unmatched = np.bincount(sizes[unmatched], minlength=len(SCALES_PX)).tolist()
    return Statistics(
        images=len(annotations),
        images_without_boxes=len(annotations) - len(np.unique(images)),
        boxes=len(labels),
        crowd_boxes=int(annotations.crowd[used].sum()),
        boxes_of_class=boxes_of_class,
        sizes=[*map(SizeClass, limits_px[:-1], limits_px[1:], counts, counts_unmatched)],
        unmatched=int(unmatched.sum()),
    )


def best_ious(boxes_cxcywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the highest IoU of each box B×4, relative to the image, with any default box.

    A default box of one shape overlaps most where its center is nearest, in each axis by itself: so only one
    of each shape's cells is looked at, 30 boxes instead of 8732.
    """
    centers, sizes = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    best = np.zeros(len(boxes_cxcywh))
    defaults, start = default_boxes().double().numpy(), 0
    for cells, shapes in zip(MAP_SIZES, BOXES_PER_CELL, strict=True):
        grid_cxcywh = defaults[start : start + shapes * cells**2].reshape(shapes, cells, cells, 4)
        start += shapes * cells**2
        for shape in grid_cxcywh:
            xs, ys, size = shape[0, :, 0], shape[:, 0, 1], shape[0, 0, 2:]
            column = np.searchsorted((xs[:-1] + xs[1:]) / 2, centers[:, 0])
            row = np.searchsorted((ys[:-1] + ys[1:]) / 2, centers[:, 1])
            nearest = shape[row, column, :2]
            right_bottom = np.minimum(centers + sizes / 2, nearest + size / 2)
            left_top = np.maximum(centers - sizes / 2, nearest - size / 2)
            shared = np.maximum(right_bottom - left_top, 0).prod(axis=1)
            best = np.maximum(best, shared / (sizes.prod(axis=1) + size.prod() - shared))
    return best
