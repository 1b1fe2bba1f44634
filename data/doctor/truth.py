"""Ground truth as if a network had found it: the evaluator must give it an AP of 1.000.

It takes the way of detections: the index's relative boxes and labels → pixels and category ids → scores. If
ids are shifted, sizes exchanged or boxes lost on that way, the number says so before a network is blamed.

Every box goes that way and is compared with what stands in the file. What returns as it stands can only be
matched, so of a large set the evaluator, which takes a minute for COCO's, scores the images where something
did not, and enough of the others to see each class come through.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.doctor.annotations import ReadBoxes
from data.doctor.document import RawAnnotation
from data.doctor.findings import Finding, Kind
from data.doctor.ids import entry_name
from data.index import CocoIndex
from ssd.batches import EvaluationBatch
from ssd.detect import Detections
from ssd.evaluation.coco import coco_numbers
from ssd.evaluation.evaluator import result_rows
from ssd.evaluation.matching import DETECTIONS_PER_CELL, IOU_THRESHOLDS

STRICTEST_IOU = float(IOU_THRESHOLDS[-1])
"""Up to which AP averages (RECIPE 7)."""

SCORED_WHOLE = 5000
"""Images up to which all are scored: COCO's validation split."""

SCORED_OF_CLASS = 50
"""Boxes of each class whose images are scored in a larger set."""

SAME = 1e-3
"""By how much of its shorter side each edge of a box may return elsewhere: an IoU of 0.996 at least.

float32, which keeps a box relative to the image, stays far below it, but for boxes of hundredths of a pixel.
"""

_BATCH = 4096  # images


@dataclass(frozen=True)
class TruthScore:
    """AP of the ground truth as detections, −1 where no box counts, and how many images were scored.

    Of a set that was not scored whole, 1.000 holds for all of it; a lower AP is that of the images scored.
    """

    ap: float
    images: int


def score_truth(index: CocoIndex, boxes: ReadBoxes) -> TruthScore:
    """Score the index's boxes as detections against its annotation file.

    index: every image of the file, without crowd boxes, which an evaluation passes over. boxes: what stands
    in the file, whose ids are whole numbers. Raises UserError.
    """
    rows = _as_detections(index)
    scored = _changed(index, rows, boxes) | _examples(index)
    if len(index) <= SCORED_WHOLE:
        scored[:] = True
    rows = rows[np.repeat(scored, np.diff(index.box_starts))]
    numbers = coco_numbers(index.source.annotation_file, rows, _ids(boxes.image_ids)[scored].tolist())
    return TruthScore(numbers["AP"], int(scored.sum()))


def explain_loss(boxes: ReadBoxes, entries: dict[int, RawAnnotation]) -> Iterator[Finding]:
    """Yield why ground truth can't be found again: boxes that clipping changes much, and too many boxes."""
    size = boxes.ltwh_px[:, 2:]
    inside = boxes.inside_px
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kept = np.where((size > 0).all(axis=1), np.maximum(inside, 0).prod(axis=1) / size.prod(axis=1), 0)
    for lost in np.flatnonzero((kept < STRICTEST_IOU) & ~boxes.crowd):
        place = int(boxes.places[lost])
        yield Finding(
            Kind.truth_lost,
            entry_name("annotations", place, entries[place].id),
            f"only {max(kept[lost], 0):.0%} of the box {entries[place].bbox} lies inside its image",
        )
    for row, count in _crowded(boxes):
        entry = entries[int(boxes.places[row])]
        yield Finding(
            Kind.truth_lost,
            f"image {entry.image_id!r}",
            f"it has {count} boxes of category {entry.category_id!r}; "
            f"at most {DETECTIONS_PER_CELL} are scored",
        )


def _as_detections(index: CocoIndex) -> NDArray[np.float64]:
    """Turn the index's boxes into detections as an evaluation does: n×7 rows, in the index's order."""
    category_ids = torch.tensor((0, *index.categories.ids), dtype=torch.float64)
    rows = []
    for start in range(0, len(index), _BATCH):
        part = slice(start, min(start + _BATCH, len(index)))
        found = []
        for image in range(part.start, part.stop):
            boxes_ltrb, labels = index.boxes_of(image)
            scores = torch.ones(len(labels))
            found.append(Detections(torch.tensor(boxes_ltrb), scores, torch.tensor(labels).long()))
        batch = EvaluationBatch(
            images=torch.empty(len(found), 0),
            image_ids=index.image_ids[part].tolist(),
            sizes_px=torch.tensor(index.sizes_px[part], dtype=torch.float32),
        )
        rows.append(result_rows(batch, found, category_ids))
    return np.concatenate(rows)


def _changed(index: CocoIndex, rows: NDArray[np.float64], boxes: ReadBoxes) -> NDArray[np.bool_]:
    """Tell of each image whether it has a box that does not return as it stands, or too many boxes: N."""
    changed = np.zeros(len(index), dtype=np.bool_)
    for row, _ in _crowded(boxes):
        changed[boxes.images[row]] = True
    usable = (boxes.ltwh_px[:, 2:] > 0).all(axis=1) & (boxes.inside_px > 0).all(axis=1)
    changed[boxes.images[~usable & ~boxes.crowd]] = True
    expected = boxes.where(usable & ~boxes.crowd)
    expected = expected.where(np.argsort(expected.images, kind="stable"))
    if len(rows) != len(expected.places):
        return np.ones_like(changed)
    off = np.abs(_ltrb(rows[:, 1:5]) - _ltrb(expected.ltwh_px)).max(axis=1)
    alike = off <= SAME * expected.ltwh_px[:, 2:].min(axis=1)
    alike &= rows[:, 0].astype(np.int64) == _ids(boxes.image_ids)[expected.images]
    alike &= rows[:, 6].astype(np.int64) == _ids(boxes.category_ids)[expected.categories]
    changed[expected.images[~alike]] = True
    return changed


def _examples(index: CocoIndex) -> NDArray[np.bool_]:
    """Choose the images of the first boxes of each class: N."""
    by_label = np.argsort(index.labels, kind="stable")
    starts = np.searchsorted(index.labels[by_label], index.labels[by_label])
    first = by_label[np.arange(len(by_label)) - starts < SCORED_OF_CLASS]
    chosen = np.zeros(len(index), dtype=np.bool_)
    chosen[np.searchsorted(index.box_starts, first, side="right") - 1] = True
    return chosen


def _crowded(boxes: ReadBoxes) -> list[tuple[int, int]]:
    """Return the first row and the number of boxes of each image and category with more than are scored."""
    counted = np.flatnonzero(~boxes.crowd)
    cells = boxes.images[counted] * 2**32 + boxes.categories[counted]
    _, first, counts = np.unique(cells, return_index=True, return_counts=True)
    crowded = counts > DETECTIONS_PER_CELL
    return [*zip(counted[first[crowded]].tolist(), counts[crowded].tolist(), strict=True)]


def _ids(ids: Sequence[object]) -> NDArray[np.int64]:
    return np.array(ids, dtype=np.int64)


def _ltrb(ltwh: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]), axis=1)
