"""What training itself makes of an annotation file: whether it opens it, and finds its ground truth again."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from data.annotation_cache import find_kept
from data.annotations import Annotations, read_annotations
from data.coco_json import Source
from data.doctor.annotations import ReadBoxes
from data.doctor.findings import Finding, Kind, Severity
from data.doctor.truth import TruthScore, score_truth
from data.file_names import FileNames
from data.index import CocoIndex, Selection, select
from ssd.errors import UserError


def open_as_training_does(
    source: Source, min_box_px: float, cache: Path, findings: list[Finding]
) -> CocoIndex | None:
    """Open the file as training does; what is wrong joins `findings`.

    Returns every image with every box that an evaluation counts, None where training refuses the file.
    Raises UserError for a cache that cannot be read.
    """
    try:
        annotations = read_annotations(source)
        kept = find_kept(source, cache)
        if kept is not None and not _equal(annotations, kept):
            detail = f"its size and time are those of the copy in {cache}, its contents are not"
            findings.append(Finding(Kind.stale_cache, str(source.annotation_file), detail))
        if source.split == "train":
            select(annotations, source, Selection("train", min_box_px=min_box_px))
        every_image = Selection(source.split, crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)
        return select(annotations, source, every_image)
    except UserError as error:
        _refuse(error, source, findings)
        return None


def check_truth(
    index: CocoIndex, boxes: ReadBoxes, losses: list[Finding], findings: list[Finding]
) -> TruthScore | None:
    """Score the ground truth of what open_as_training_does has opened; what is wrong joins `findings`.

    boxes: of the file. losses: why some can't be found again. Returns None where an evaluation refuses the
    file.
    """
    where = str(index.source.annotation_file)
    try:
        truth = score_truth(index, boxes)
    except UserError as error:
        _refuse(error, index.source, findings)
        return None
    if truth.ap < 0:
        findings.append(Finding(Kind.truth_unscored, where, "it has no box that counts"))
    elif round(truth.ap, 3) < 1:
        detail = f"the ground truth as detections has an AP of {truth.ap:.3f}, not 1.000"
        findings.extend(losses or [Finding(Kind.truth_unlike, where, detail)])
    return truth


def _refuse(error: Exception, source: Source, findings: list[Finding]) -> None:
    where = str(source.annotation_file)
    if all(finding.kind.value.severity is not Severity.error for finding in findings):
        findings.append(Finding(Kind.refused, where, str(error)))
    findings.append(Finding(Kind.truth_unscored, where, "training does not open the file"))


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
