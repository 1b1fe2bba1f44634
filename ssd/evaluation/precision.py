"""COCO's precision and recall tables, bit for bit those of pycocotools 2.0.11.

Dimensions: T IoU thresholds, R recall levels, K categories, A area ranges, D detections, M limits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd.evaluation.matching import (
    AREA_RANGES,
    DETECTIONS_PER_CELL,
    IOU_THRESHOLDS,
    GroundTruth,
    ScoredBoxes,
    match,
)

RECALL_LEVELS = np.linspace(0, 1, 101)
LIMITS = (1, 10, DETECTIONS_PER_CELL)
"""How many detections of each image and category count for a recall; precision is of all 100."""


@dataclass(frozen=True, eq=False)
class Tables:
    """precision: T×R×K×A. recall: T×K×A×M. Both are −1 where a category has no box of that area range."""

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def tabulate(truth: GroundTruth, detections: ScoredBoxes, categories: int) -> Tables:
    """Match and count. detections: ordered by `matching.best_of_each_cell`."""
    right, wrong = match(truth, detections)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_LEVELS), categories, len(AREA_RANGES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), categories, len(AREA_RANGES), len(LIMITS)), -1.0)
    firsts = np.searchsorted(detections.categories, np.arange(categories + 1))
    within_limits = [detections.ranks < limit for limit in LIMITS]
    for area, ignored in enumerate(truth.ignored):
        to_find = np.bincount(truth.categories[~ignored], minlength=categories)
        for category in np.flatnonzero(to_find):
            rows = slice(firsts[category], firsts[category + 1])
            hits, misses = right[area, :, rows], wrong[area, :, rows]
            for limit, within in enumerate(within_limits):
                recall[:, category, area, limit] = (hits & within[rows]).sum(axis=1) / to_find[category]
            order = np.argsort(-detections.scores[rows], kind="stable")
            precision[:, :, category, area] = _precision(hits[:, order], misses[:, order], to_find[category])
    return Tables(precision, recall)


def _precision(hits: NDArray[np.bool_], misses: NDArray[np.bool_], to_find: int) -> NDArray[np.float64]:
    """Return the best precision at each recall level or beyond, 0 where it is not reached, T×R.

    hits, misses: T×D, of falling score.
    """
    true, false = np.cumsum(hits, axis=1, dtype=np.float64), np.cumsum(misses, axis=1, dtype=np.float64)
    recall = true / to_find
    # np.spacing(1) moves the last bit of some quotients: without it AP50 is not pycocotools'.
    precision = true / (false + true + np.spacing(1))
    beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    beyond = np.pad(beyond, ((0, 0), (0, 1)))
    reached = [np.searchsorted(found, RECALL_LEVELS) for found in recall]
    return np.take_along_axis(beyond, np.array(reached), axis=1)
