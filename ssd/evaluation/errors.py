"""Where does a detector fail, and what does it cost? By class, size, kind of error, and box.

The kinds of error and their costs are TIDE's: Bolya et al. 2020, "TIDE: A General Toolbox for Identifying
Object Detection Errors", section 2. ssd/evaluation/coco.py decides, by COCO's rules, which detections are
right or ignored, and computes every AP.

Letters: G annotated boxes, D detections, T IoU thresholds, R recall levels, K categories.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from ssd.detect import SHOWN_SCORE
from ssd.evaluation.coco import IOU_THRESHOLDS, SIZES, Scored, in_both, numbers_of, precision_of

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # TIDE's t_f and t_b

BOX = np.dtype(
    [
        *(("image_id", "i8"), ("category", "i8"), ("bbox", "f8", 4), ("score", "f8")),
        *(("kind", "U14"), ("iou", "f8"), ("truth", "i8")),
    ]
)
"""A detected or annotated box. category: index into Analysis.names. For the other fields see Analysis."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """What there was to find, what was found, and what went wrong. Metrics are −1 if nothing is annotated.

    names: K class names, by ascending id. boxes: K, annotated boxes per class, without crowds. images: K,
    images with such a box. ap, recall: K, COCO's per class; their means are AP and AR_100.
    precision: 2×R×K at IoU 0.5 and 0.75, over coco.RECALL_LEVELS; means over R are AP50 and AP75 of a class.
    numbers: COCO's 12. sizes: annotated boxes of each of SIZES.
    cost: for each of KINDS, how much AP50 would gain if only these errors were fixed; costs don't add up.
    counts: for each of KINDS, the number of detections; for "missed", the number of annotated boxes.
    confusion: (K+1)×(K+1), annotated × detected, for scores of SHOWN_SCORE or more, at IoU 0.5; the last row
    and column are background. Each box counts once: if it is found, as found, otherwise for the best
    detection whose only error is the class.
    calibration: one row for each tenth of the score range 0 to 1 that has detections: their mean score, and
    the share of them that is right at IoU 0.5.
    detections: rows of BOX, in the order of Scored.found. kind: "right", one of KINDS, or "ignored" if it
    matches a crowd. truth: the row in `truths` of the box it was compared with, or −1. iou: with that box, or
    else the best with any box.
    truths: rows of BOX in file order; score is NaN, truth the row itself. kind: "found" if a detection is
    right about it, "mistaken" if one is wrong only about its class or place, "missed", or "crowd". iou: the
    best with a detection of any class.
    """

    names: list[str]
    boxes: NDArray[np.int64]
    images: NDArray[np.int64]
    ap: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    numbers: dict[str, float]
    sizes: dict[str, int]
    cost: dict[str, float]
    counts: dict[str, int]
    confusion: NDArray[np.int64]
    calibration: NDArray[np.float64]
    detections: NDArray[np.void]
    truths: NDArray[np.void]


def explain(scored: Scored) -> Analysis:
    """Classify each detection and each annotated box.

    A wrong detection gets the first kind that applies, from its best IoU with boxes of its own class (same)
    and of other classes (other): localization if 0.1 ≤ same < 0.5, classification if other ≥ 0.5, duplicate
    if same ≥ 0.5, background if both are below 0.1, otherwise both. The paper leaves this order open; it is
    the order of its authors' code.
    """
    truth, counts = scored.truth, scored.to_find[0]
    categories = len(scored.annotated.category_ids)
    rows, truths = _boxes(scored)
    with_box = np.unique(np.stack([truth.images, truth.categories])[:, counts], axis=1)
    precision, recall = scored.precision[..., 0], scored.recall[:, :, 0, -1]  # T×R×K, T×K
    kinds = [*rows["kind"].tolist(), *truths["kind"].tolist()]
    return Analysis(
        names=scored.annotated.names,
        boxes=np.bincount(truth.categories[counts], minlength=categories),
        images=np.bincount(with_box[1], minlength=categories),
        ap=precision.mean(axis=(0, 1)),
        recall=recall.mean(axis=0),
        precision=precision[np.isin(IOU_THRESHOLDS, (0.5, 0.75))],
        numbers=numbers_of(scored),
        sizes=dict(zip(SIZES, scored.to_find[1:].sum(axis=1).tolist(), strict=True)),
        cost=_cost(rows, truths),
        counts={kind: kinds.count(kind) for kind in KINDS},
        confusion=_confusion(rows, truths, categories),
        calibration=_calibration(rows),
        detections=rows,
        truths=truths,
    )


def _boxes(scored: Scored) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Return Analysis.detections and Analysis.truths."""
    truth, found, counts = scored.truth, scored.found, scored.to_find[0]
    matched, right, wrong = scored.matched[0, 0], scored.right[0, 0], scored.wrong[0, 0]
    matched_iou, same_iou, other_iou = np.zeros((3, len(found.scores)))
    same_truth, other_truth = np.full((2, len(found.scores)), -1)
    best_iou = np.zeros(len(counts))
    for rows, boxes in in_both(found.images, truth.images):
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
    holds, ious_told, boxes_told = zip(*tests.values(), strict=True)
    kinds = np.select(holds, [*tests], default="both")
    iou_told = np.select(holds, ious_told, default=other_iou)
    concerned = np.select(holds, boxes_told, default=other_truth)
    truth_kinds = np.where(counts, "missed", "crowd").astype(BOX["kind"])
    truth_kinds[concerned[np.isin(kinds, ("classification", "localization"))]] = "mistaken"
    truth_kinds[matched[right]] = "found"

    told = (found.scores, kinds, iou_told, concerned)
    told_of_truth = (np.full(len(counts), np.nan), truth_kinds, best_iou, np.arange(len(counts)))
    image_ids = scored.annotated.image_ids
    detections, truths = (
        np.rec.fromarrays([image_ids[of.images], of.categories, of.boxes_ltwh_px, *rest], BOX)
        for of, rest in ((found, told), (truth, told_of_truth))
    )
    return detections, truths


def _cost(rows: NDArray[np.void], truths: NDArray[np.void]) -> dict[str, float]:
    """Return how much AP50 gains from TIDE's oracle for each kind."""
    # Best first. COCO breaks ties by image, then by input order.
    order = np.lexsort((rows["image_id"], -rows["score"]))
    order = order[rows["kind"][order] != "ignored"]
    kinds, boxes, classes = rows["kind"][order], rows["truth"][order], rows["category"][order]
    to_find = np.bincount(truths["category"][truths["kind"] != "crowd"])
    missed = np.bincount(truths["category"][truths["kind"] == "missed"], minlength=len(to_find))

    def ap50(hits: NDArray[np.bool_], classes: NDArray[np.int64], left: NDArray[np.int64]) -> float:
        aps = []
        for category in np.flatnonzero(to_find):
            of_class = hits[None, classes == category]
            if left[category]:
                aps.append(precision_of(of_class, ~of_class, left[category]).mean())
            else:  # all its boxes are missed: nothing is left to find, so every detection is wrong
                aps.append(float(not of_class.size))
        return float(np.mean(aps)) if aps else 0.0

    right = kinds == "right"
    now = ap50(right, classes, to_find)
    cost = {}
    for kind in KINDS[:-1]:
        of_kind = kinds == kind
        hits, fixed_classes = right.copy(), classes.copy()
        if kind in ("classification", "localization"):
            # Fixed detections compete for their box with each other and with the one already right about it.
            rivals = np.flatnonzero(right | of_kind)
            won, first = np.unique(boxes[rivals], return_index=True)
            hits[rivals] = False
            hits[rivals[first]] = True
            fixed_classes[rivals[first]] = truths["category"][won]
        kept = hits | ~(right | of_kind)
        cost[kind] = ap50(hits[kept], fixed_classes[kept], to_find) - now
    return cost | {"missed": ap50(right, classes, to_find - missed) - now}


def _confusion(rows: NDArray[np.void], truths: NDArray[np.void], background: int) -> NDArray[np.int64]:
    shown = (rows["score"] >= SHOWN_SCORE) & (rows["kind"] != "ignored")
    rivals = np.flatnonzero(shown & np.isin(rows["kind"], ("right", "classification")))
    rivals = rivals[np.lexsort((-rows["score"][rivals], rows["kind"][rivals] != "right"))]
    boxes, first = np.unique(rows["truth"][rivals], return_index=True)
    annotated = np.full(len(rows), background)
    annotated[rivals[first]] = truths["category"][boxes]
    left = truths["kind"] != "crowd"
    left[boxes] = False
    confusion = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(confusion, (annotated[shown], rows["category"][shown]), 1)
    np.add.at(confusion, (truths["category"][left], background), 1)
    return confusion


def _calibration(rows: NDArray[np.void]) -> NDArray[np.float64]:
    counted = rows[rows["kind"] != "ignored"]
    tenths, right = np.minimum(counted["score"] * 10 // 1, 9), counted["kind"] == "right"
    of_each = [tenths == tenth for tenth in np.unique(tenths)]
    points = [(counted["score"][inside].mean(), right[inside].mean()) for inside in of_each]
    return np.array(points).reshape(-1, 2)
