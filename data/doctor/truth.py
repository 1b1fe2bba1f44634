"""Ground truth as if a network had found it: the evaluator must give it an AP of 1.000.

It takes the way of detections: the index's relative boxes and labels → pixels and category ids → scores. If
ids are shifted, sizes exchanged or boxes lost on that way, the number says so before a network is blamed.
"""

from collections.abc import Iterator

import numpy as np
import torch

from data.coco import CocoIndex
from data.doctor.annotations import ReadBoxes
from data.doctor.document import RawAnnotation
from data.doctor.findings import Finding, Kind
from data.doctor.ids import entry_name
from ssd.batches import EvaluationBatch
from ssd.detect import Detections
from ssd.evaluation.coco import coco_numbers
from ssd.evaluation.evaluator import result_rows

STRICTEST_IOU = 0.95
"""Up to which AP averages (RECIPE 7)."""

MAX_SCORED = 100
"""Detections of an image and category that are scored (RECIPE 7)."""


def score_truth(index: CocoIndex) -> float:
    """Return the AP of the index's boxes as detections, against its annotation file; −1 where none counts.

    index: without crowd boxes, which an evaluation passes over. Raises EvaluationError.
    """
    found = []
    for image in range(len(index)):
        boxes_ltrb, labels = index.boxes_of(image)
        found.append(
            Detections(
                boxes=torch.tensor(boxes_ltrb),
                scores=torch.ones(len(labels)),
                labels=torch.tensor(labels).long(),
            )
        )
    batch = EvaluationBatch(
        images=torch.empty(len(index), 0),
        image_ids=index.image_ids.tolist(),
        sizes_px=torch.tensor(index.sizes_px, dtype=torch.float32),
    )
    category_ids = torch.tensor((0, *index.categories.ids), dtype=torch.float64)
    return coco_numbers(index.source.annotation_file, result_rows(batch, found, category_ids))["AP"]


def explain_loss(boxes: ReadBoxes, entries: dict[int, RawAnnotation]) -> Iterator[Finding]:
    """Yield why ground truth can't be found again: boxes that clipping changes much, and too many boxes."""
    size = boxes.ltwh_px[:, 2:]
    inside = boxes.inside_px
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kept = np.where((size > 0).all(axis=1), np.maximum(inside, 0).prod(axis=1) / size.prod(axis=1), 0)
    for row in np.flatnonzero((kept < STRICTEST_IOU) & ~boxes.crowd):
        place = int(boxes.places[row])
        yield Finding(
            Kind.truth_lost,
            entry_name("annotations", place, entries[place].id),
            f"only {max(kept[row], 0):.0%} of the box {entries[place].bbox} lies inside its image",
        )
    counted = ~boxes.crowd
    groups = np.stack((boxes.images[counted], boxes.categories[counted]), axis=1)
    first, counts = np.unique(groups, axis=0, return_index=True, return_counts=True)[1:]
    for row, count in zip(np.flatnonzero(counted)[first], counts.tolist(), strict=True):
        if count > MAX_SCORED:
            entry = entries[int(boxes.places[row])]
            yield Finding(
                Kind.truth_lost,
                f"image {entry.image_id!r}",
                f"it has {count} boxes of category {entry.category_id!r}; at most {MAX_SCORED} are scored",
            )
