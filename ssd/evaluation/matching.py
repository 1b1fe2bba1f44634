"""COCO's greedy matching of detections to ground truth, decision for decision that of pycocotools 2.0.11.

Dimensions: G annotated boxes, D detections, T IoU thresholds, A area ranges. A cell is one category on one
image; boxes are matched within their cell alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])
"""All, small, medium and large, in square pixels; both ends belong to the range."""
DETECTIONS_PER_CELL = 100


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated boxes, a row each: boxes_ltwh_px G×4; image and category are places in the lists of ids."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "GroundTruth":
        """Return these rows, in this order."""
        return GroundTruth(
            self.images[rows],
            self.categories[rows],
            self.boxes_ltwh_px[rows],
            self.areas[rows],
            self.crowd[rows],
        )

    @property
    def cells(self) -> NDArray[np.int64]:
        """Number each row's cell, category by category and then image by image."""
        return self.categories * 2**32 + self.images

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """Tell for each area range what need not be found: crowds and what lies outside the range, A×G."""
        return self.crowd | _outside_area_ranges(self.areas)


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """Detected boxes, a row each: boxes_ltwh_px D×4; image and category are places in the lists of ids."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]
    scores: NDArray[np.float64]

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "ScoredBoxes":
        """Return these rows, in this order."""
        return ScoredBoxes(
            self.images[rows], self.categories[rows], self.boxes_ltwh_px[rows], self.scores[rows]
        )

    @property
    def cells(self) -> NDArray[np.int64]:
        """Number each row's cell, category by category and then image by image."""
        return self.categories * 2**32 + self.images

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Count from 0 within each cell; the rows are ordered by cell."""
        _, starts, counts = np.unique(self.cells, return_index=True, return_counts=True)
        return np.arange(len(self.cells)) - np.repeat(starts, counts)


def best_of_each_cell(detections: ScoredBoxes) -> ScoredBoxes:
    """Order by category, image and falling score, equal scores as they came; keep each cell's 100 best."""
    ordered = detections.take(np.lexsort((-detections.scores, detections.cells)))
    return ordered.take(ordered.ranks < DETECTIONS_PER_CELL)


def match(truth: GroundTruth, detections: ScoredBoxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections are right and which are wrong, A×T×D each; the rest count for nothing.

    detections: ordered by `best_of_each_cell`. A detection counts for nothing where it matches an ignored
    box, or matches none and lies outside the area range itself.
    """
    truth = truth.take(np.argsort(truth.cells, kind="stable"))
    right = np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), len(detections.scores)), dtype=np.bool_)
    excused = right | _outside_area_ranges(detections.boxes_ltwh_px[:, 2:].prod(axis=1))[:, None]
    ignored = truth.ignored
    cells = np.intersect1d(truth.cells, detections.cells)
    for boxes, rows in zip(_runs(truth.cells, cells), _runs(detections.cells, cells), strict=True):
        ious = mask.iou(detections.boxes_ltwh_px[rows], truth.boxes_ltwh_px[boxes], truth.crowd[boxes])
        near = np.flatnonzero((ious >= IOU_THRESHOLDS[0]).any(axis=1))  # the others match nothing
        if len(near):
            matches = _match_cell(ious[near], truth.crowd[boxes], ignored[:, boxes])
            right[:, :, rows.start + near], to_ignored = matches
            excused[:, :, rows.start + near] |= to_ignored
    return right, ~right & ~excused


def _match_cell(
    ious: NDArray[np.float64], crowd: NDArray[np.bool_], ignored: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match the detections of one cell, best first, each to the best box that no better one has taken.

    ious: D×G. crowd: G, boxes that any number of detections may match. ignored: A×G.
    Returns who matches a box that counts and who an ignored one, A×T×D each.
    """
    # One more box stands for "no match": within reach of all, never used up, and liked least.
    no_match = len(crowd)
    ious = np.pad(ious, ((0, 0), (0, 1)), constant_values=-1)
    reusable = np.append(crowd, True)
    counts = np.pad(~ignored, ((0, 0), (0, 1)))
    reach = ious[:, None] >= IOU_THRESHOLDS[:, None]  # D×T×(G+1)
    reach[..., no_match] = True
    # A box that counts is liked better than an ignored one, then the higher IoU, then the later box.
    by_iou = ious.argsort(axis=1, kind="stable").argsort(axis=1)
    liking = by_iou[:, None] + len(reusable) * counts  # D×A×(G+1)
    choices = np.empty((len(ious), len(counts), len(IOU_THRESHOLDS)), dtype=np.intp)  # D×A×T
    free = np.ones((*choices.shape[1:], len(reusable)), dtype=np.bool_)  # A×T×(G+1)
    areas, thresholds = np.ogrid[: free.shape[0], : free.shape[1]]
    for row in range(len(ious)):
        choice = np.where(reach[row] & free, liking[row][:, None], -1).argmax(axis=2)
        free[areas, thresholds, choice] = reusable[choice]
        choices[row] = choice
    counted = np.moveaxis(counts[areas, choices], 0, -1)
    return counted, ~counted & np.moveaxis(choices != no_match, 0, -1)


def _outside_area_ranges(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell for each area range which areas lie outside it, A×n."""
    low, high = AREA_RANGES.T[:, :, None]
    outside: NDArray[np.bool_] = (areas < low) | (areas > high)
    return outside


def _runs(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> list[slice]:
    """Return where each value stands in an ascending array."""
    firsts = np.searchsorted(ordered, values, side="left")
    ends = np.searchsorted(ordered, values, side="right")
    return [slice(first, end) for first, end in zip(firsts.tolist(), ends.tolist(), strict=True)]
