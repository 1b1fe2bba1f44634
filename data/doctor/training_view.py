"""What training itself makes of an annotation file: whether it opens it, and finds its ground truth again."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from data.annotation_cache import open_annotations
from data.annotations import Annotations, read_annotations
from data.coco import Selection, read_index
from data.coco_json import Source
from data.doctor.annotations import ReadBoxes
from data.doctor.document import Entries
from data.doctor.findings import Finding, Kind, Severity
from data.doctor.truth import explain_loss, score_truth
from data.errors import DatasetError
from data.file_names import FileNames
from ssd.evaluation.errors import EvaluationError


def check_as_training_does(
    source: Source, entries: Entries, boxes: ReadBoxes, min_box_px: float, cache: Path
) -> float | None:
    """Open the file as training does and score its ground truth; what is wrong joins `entries.findings`.

    Returns the AP of the ground truth, None where training refuses the file. Raises UserError for an unusable
    cache.
    """
    findings, where = entries.findings, str(source.annotation_file)
    try:
        fresh = read_annotations(source)
        if not _equal(fresh, open_annotations(source, cache)):
            detail = f"its size and time are those of the copy in {cache}, its contents are not"
            findings.append(Finding(Kind.stale_cache, where, detail))
        if source.split == "train":
            read_index(source.annotation_file, source.image_folder, Selection("train", min_box_px=min_box_px))
        every_image = Selection(source.split, crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)
        ap = score_truth(read_index(source.annotation_file, source.image_folder, every_image))
    except (DatasetError, EvaluationError) as error:
        if all(finding.kind.value.severity is not Severity.error for finding in findings):
            findings.append(Finding(Kind.refused, where, str(error)))
        findings.append(Finding(Kind.truth_unscored, where, "training does not open the file"))
        return None
    if ap < 0:
        findings.append(Finding(Kind.truth_unscored, where, "it has no box that counts"))
    elif round(ap, 3) < 1:
        detail = f"the ground truth as detections has an AP of {ap:.3f}, not 1.000"
        lost = [*explain_loss(boxes, entries.annotations)]
        findings.extend(lost or [Finding(Kind.truth_unlike, where, detail)])
    return ap


def _equal(annotations: Annotations, others: Annotations) -> bool:
    return all(
        _equal_field(getattr(annotations, field.name), getattr(others, field.name))
        for field in fields(Annotations)
    )


def _equal_field(value: object, other: object) -> bool:
    if isinstance(value, FileNames) and isinstance(other, FileNames):
        return _equal_field(value.utf8, other.utf8) and _equal_field(value.starts, other.starts)
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return value == other
