"""Where does a detector fail, and what does it cost? By class, by size, by kind of error, box by box.

The kinds of error and their costs are TIDE's: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying
Object Detection Errors", section 2. What is right, what counts for nothing and every AP are COCO's, from
ssd/evaluation/coco.py.

Letters: G annotated boxes, D detections, T IoU thresholds, R recall levels, K categories.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from ssd.detect import SHOWN_SCORE
from ssd.evaluation.coco import IOU_THRESHOLDS, RESULT, Results, Scored, precision_of, score

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # TIDE's t_f and t_b
SCORE_BINS = 10

DETECTION = np.dtype([*RESULT.descr, ("kind", "U14"), ("iou", "f8"), ("truth", "i8")])
TRUTH = np.dtype(
    [
        *(("image_id", "i8"), ("category_id", "i8"), ("bbox", "f8", 4), ("area", "f8")),
        *(("crowd", "?"), ("found", "?"), ("missed", "?"), ("best_iou", "f8")),
    ]
)


@dataclass(frozen=True, eq=False)
class Analysis:
    """What there was to find, what of it was found, and what was wrong. −1 where nothing is annotated.

    names, category_ids: K, by ascending id. boxes, images: K, annotated boxes of each class (no crowds), and
    images with one. ap, ap50, ap75, recall: K, COCO's; their means are its AP, AP50, AP75 and AR_100.
    precision: 2×R×K at IoU .5 and .75, over coco.RECALL_LEVELS.
    by_size: of small, medium and large each AP, AR_100 and boxes.
    cost: of each of KINDS, what AP50 would gain if errors of that kind alone were fixed; they don't add up.
    counts: of each of KINDS, how many detections are of it; of missed, how many boxes.
    confusion: (K+1)×(K+1), annotated × detected with a score from SHOWN_SCORE on, at IoU .5; the last row and
    column are background. A box counts once: where it is found, else for the best detection of another class.
    calibration: SCORE_BINS×3, of detections with a score in each tenth from 0 to 1 the mean score, the share
    that is right at IoU .5 and the number; 0 where there are none.
    detections: rows of DETECTION, as given. kind: "right", one of KINDS, or "ignored", where it matches a
    crowd or 100 of its class and image are better. truth: the annotated box concerned, a row of `truths`, or
    −1. iou: with that box, else the best with any.
    truths: rows of TRUTH, in the file's order. found: a detection is right about it. missed: nor is one wrong
    about its class or place alone. best_iou: with a detection of any class.
    """

    names: list[str]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.int64]
    images: NDArray[np.int64]
    ap: NDArray[np.float64]
    ap50: NDArray[np.float64]
    ap75: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    by_size: dict[str, dict[str, float]]
    cost: dict[str, float]
    counts: dict[str, int]
    confusion: NDArray[np.int64]
    calibration: NDArray[np.float64]
    detections: NDArray[np.void]
    truths: NDArray[np.void]


def analyse(
    annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None
) -> Analysis:
    """Analyse detections, given and refused as coco_numbers does, against the annotation file.

    A detection that is not right is of the first of these kinds that holds, by its best IoU with a box of its
    class and its best with one of another: localization, the former is in [.1, .5); classification, the
    latter is .5 or more; duplicate, the former is; background, both are below .1; both. The paper leaves the
    order open; this is that of its authors' code.
    """
    return explain(score(annotation_file, detections, image_ids))


def explain(scored: Scored) -> Analysis:
    """Analyse what was scored already, which takes a quarter of the time."""
    truth, counts = scored.truth, scored.to_find[0]
    categories = len(scored.annotated.category_ids)
    rows, truths, other_truth = _tables(scored)
    with_box = np.unique(np.stack([truth.images, truth.categories])[:, counts], axis=1)
    precision, recall = scored.precision[..., 0], scored.recall[:, :, 0, -1]  # T×R×K, T×K
    at_50, at_75 = precision[IOU_THRESHOLDS == 0.5], precision[IOU_THRESHOLDS == 0.75]
    found = {kind: int(np.count_nonzero(rows["kind"] == kind)) for kind in KINDS}
    return Analysis(
        names=scored.annotated.names,
        category_ids=scored.annotated.category_ids,
        boxes=np.bincount(truth.categories[counts], minlength=categories),
        images=np.bincount(with_box[1], minlength=categories),
        ap=precision.mean(axis=(0, 1)),
        ap50=at_50.mean(axis=(0, 1)),
        ap75=at_75.mean(axis=(0, 1)),
        recall=recall.mean(axis=0),
        precision=np.concatenate([at_50, at_75]),
        by_size={
            size: {
                "AP": _mean(scored.precision[..., area]),
                "AR_100": _mean(scored.recall[:, :, area, -1]),
                "boxes": float(np.count_nonzero(scored.to_find[area])),
            }
            for area, size in enumerate(("small", "medium", "large"), start=1)
        },
        cost=_cost(scored, rows, truths),
        counts=found | {"missed": int(np.count_nonzero(truths["missed"]))},
        confusion=_confusion(scored, rows, other_truth),
        calibration=_calibration(rows),
        detections=rows,
        truths=truths,
    )


def _mean(table: NDArray[np.float64]) -> float:
    counted = table[table > -1]
    return float(counted.mean()) if len(counted) else -1.0


def _tables(scored: Scored) -> tuple[NDArray[np.void], NDArray[np.void], NDArray[np.int64]]:
    """Return rows of DETECTION and TRUTH, and the box of another class that a detection lies on, D, or −1."""
    truth, found, counts = scored.truth, scored.found, scored.to_find[0]
    matched, right, wrong = (np.full(len(found.scores), fill) for fill in (-1, False, False))
    matched[scored.counted] = scored.matched[0, 0]
    right[scored.counted], wrong[scored.counted] = scored.right[0, 0], scored.wrong[0, 0]

    matched_iou, same_iou, other_iou = np.zeros((3, len(found.scores)))
    same_truth, other_truth = np.full((2, len(found.scores)), -1)
    best_iou = np.zeros(len(counts))
    rows_by_image, boxes_by_image = (np.argsort(each.images, kind="stable") for each in (found, truth))
    images = np.intersect1d(found.images, truth.images)
    row_ranges = np.searchsorted(found.images[rows_by_image], (images, images + 1)).T
    box_ranges = np.searchsorted(truth.images[boxes_by_image], (images, images + 1)).T
    for row_range, box_range in zip(row_ranges, box_ranges, strict=True):
        rows, boxes = rows_by_image[slice(*row_range)], boxes_by_image[slice(*box_range)]
        ious = mask.iou(found.boxes_ltwh_px[rows], truth.boxes_ltwh_px[boxes], truth.crowd[boxes])  # D×G
        matched_iou[rows] = np.where(matched[rows, None] == boxes, ious, 0).max(axis=1)
        best_iou[boxes] = ious.max(axis=0)
        same = found.categories[rows, None] == truth.categories[boxes]
        for of_kind, iou, box in ((same, same_iou, same_truth), (~same, other_iou, other_truth)):
            considered = np.where(of_kind & counts[boxes], ious, 0)
            best = considered.argmax(axis=1)
            iou[rows], box[rows] = considered[np.arange(len(rows)), best], boxes[best]

    any_iou = np.maximum(same_iou, other_iou)
    tests = {
        "right": (right, matched_iou, matched),
        "ignored": (~wrong, matched_iou, matched),
        "localization": ((same_iou >= BACKGROUND_IOU) & (same_iou < FOREGROUND_IOU), same_iou, same_truth),
        "classification": (other_iou >= FOREGROUND_IOU, other_iou, other_truth),
        "duplicate": (same_iou >= FOREGROUND_IOU, same_iou, same_truth),
        "background": (any_iou < BACKGROUND_IOU, any_iou, np.full_like(matched, -1)),
    }
    holds, ious, boxes = zip(*tests.values(), strict=True)
    kind = np.select(holds, [*tests], default="both")
    concerned = np.select(holds, boxes, default=other_truth)
    is_found, missed = np.zeros(len(counts), dtype=np.bool_), counts.copy()
    is_found[matched[right]] = True
    missed[concerned[np.isin(kind, ("right", "classification", "localization"))]] = False
    image_ids, category_ids = scored.annotated.image_ids, scored.annotated.category_ids
    ids_of_found = image_ids[found.images], category_ids[found.categories]
    ids_of_truth = image_ids[truth.images], category_ids[truth.categories]
    iou = np.select(holds, ious, default=other_iou)
    detections = (*ids_of_found, found.boxes_ltwh_px, found.scores, kind, iou, concerned)
    truths = (*ids_of_truth, truth.boxes_ltwh_px, truth.areas, truth.crowd, is_found, missed, best_iou)
    on_other = np.where(other_iou >= FOREGROUND_IOU, other_truth, -1)
    return _table(DETECTION, *detections), _table(TRUTH, *truths), on_other


def _table(dtype: np.dtype[np.void], *columns: NDArray[Any]) -> NDArray[np.void]:
    table = np.empty(len(columns[0]), dtype)
    for field, column in zip(dtype.names or (), columns, strict=True):
        table[field] = column
    return table


def _cost(scored: Scored, rows: NDArray[np.void], truths: NDArray[np.void]) -> dict[str, float]:
    """Return what AP50 gains by TIDE's oracle of each kind."""
    truth, classes, kinds = scored.truth, scored.found.categories, rows["kind"]
    right = kinds == "right"
    # Equal scores as COCO takes them: by image, then as given.
    order = np.lexsort((np.arange(len(rows)), scored.found.images, -rows["score"]))
    order = order[kinds[order] != "ignored"]
    categories = len(scored.annotated.category_ids)
    to_find = np.bincount(truth.categories[scored.to_find[0]], minlength=categories)
    missed = np.bincount(truth.categories[truths["missed"]], minlength=categories)
    with_boxes = np.flatnonzero(to_find)
    if not len(with_boxes):
        return dict.fromkeys(KINDS, 0.0)
    now = _ap50(order, right, classes, to_find, with_boxes)
    cost = {}
    for kind in KINDS[:-1]:
        of_kind = kinds == kind
        hits, fixed_classes = right, classes
        if kind in ("classification", "localization"):
            # Once fixed they compete for their box with each other and with the one that is right about it.
            rivals = order[(right | of_kind)[order]]
            boxes, first = np.unique(rows["truth"][rivals], return_index=True)
            hits, fixed_classes = np.zeros_like(right), classes.copy()
            hits[rivals[first]] = True
            fixed_classes[rivals[first]] = truth.categories[boxes]
        kept = hits | ~(right | of_kind)
        cost[kind] = _ap50(order[kept[order]], hits, fixed_classes, to_find, with_boxes) - now
    return cost | {"missed": _ap50(order, right, classes, to_find - missed, with_boxes) - now}


def _ap50(
    order: NDArray[np.intp],
    hits: NDArray[np.bool_],
    classes: NDArray[np.int64],
    to_find: NDArray[np.int64],
    averaged: NDArray[np.intp],
) -> float:
    """Return the mean AP of the classes averaged. order: detections that count, best first; to_find: K."""
    order = order[np.argsort(classes[order], kind="stable")]
    ranges = np.searchsorted(classes[order], (averaged, averaged + 1)).T
    aps = []
    for category, row_range in zip(averaged, ranges, strict=True):
        of_class = hits[None, order[slice(*row_range)]]
        # Where all boxes of a class are missed, nothing is left to find, and what was detected is wrong.
        nothing_left = float(not of_class.size)
        left = to_find[category]
        aps.append(precision_of(of_class, ~of_class, left).mean() if left else nothing_left)
    return float(np.mean(aps))


def _confusion(scored: Scored, rows: NDArray[np.void], other_truth: NDArray[np.int64]) -> NDArray[np.int64]:
    categories = len(scored.annotated.category_ids)
    right = rows["kind"] == "right"
    shown = (rows["score"] >= SHOWN_SCORE) & (rows["kind"] != "ignored")
    truth = np.where(right, rows["truth"], other_truth)
    rivals = np.flatnonzero(shown & (truth >= 0))
    rivals = rivals[np.lexsort((-rows["score"][rivals], ~right[rivals]))]
    chosen = rivals[np.unique(truth[rivals], return_index=True)[1]]
    annotated = np.full(len(rows), categories)
    annotated[chosen] = scored.truth.categories[truth[chosen]]
    left = scored.to_find[0].copy()
    left[truth[chosen]] = False
    confusion = np.zeros((categories + 1, categories + 1), dtype=np.int64)
    np.add.at(confusion, (annotated[shown], scored.found.categories[shown]), 1)
    np.add.at(confusion, (scored.truth.categories[left], categories), 1)
    return confusion


def _calibration(rows: NDArray[np.void]) -> NDArray[np.float64]:
    counted = rows[rows["kind"] != "ignored"]
    bins = np.clip((counted["score"] * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
    number = np.bincount(bins, minlength=SCORE_BINS)
    summed = (counted["score"], counted["kind"] == "right")
    sums = [np.bincount(bins, values, SCORE_BINS) for values in summed]
    return np.stack([*(of_bin / np.maximum(number, 1) for of_bin in sums), number], axis=1)
