"""COCO's 12 numbers as people know them: pycocotools' lines, and a json that says how they came about."""

import json
from pathlib import Path
from typing import Any

from ssd.checkpoint import package_versions
from ssd.cli import writing
from ssd.detect import IOU_THRESHOLD, MAX_DETECTIONS, SCORE_THRESHOLD
from ssd.evaluation.coco import NAMES
from ssd.evaluation.evaluator import Evaluation, Evaluator
from ssd.runtime import Runtime

# Title, IoU, area and detections an image of each number, in the order of NAMES.
_ROWS = (
    ("Precision", "0.50:0.95", "all", 100),
    ("Precision", "0.50", "all", 100),
    ("Precision", "0.75", "all", 100),
    ("Precision", "0.50:0.95", "small", 100),
    ("Precision", "0.50:0.95", "medium", 100),
    ("Precision", "0.50:0.95", "large", 100),
    ("Recall", "0.50:0.95", "all", 1),
    ("Recall", "0.50:0.95", "all", 10),
    ("Recall", "0.50:0.95", "all", 100),
    ("Recall", "0.50:0.95", "small", 100),
    ("Recall", "0.50:0.95", "medium", 100),
    ("Recall", "0.50:0.95", "large", 100),
)


def summary_lines(numbers: dict[str, float]) -> list[str]:
    """Return the 12 lines that pycocotools prints for these numbers, to the letter."""
    lines = []
    for name, (kind, iou, area, detections) in zip(NAMES, _ROWS, strict=True):
        short = "(AP)" if kind == "Precision" else "(AR)"
        setting = f"@[ IoU={iou:<9} | area={area:>6} | maxDets={detections:>3} ]"
        lines.append(f" {'Average ' + kind:<18} {short} {setting} = {numbers[name]:0.3f}")
    return lines


def evaluation_report(
    checkpoint: str, evaluator: Evaluator, result: Evaluation, runtime: Runtime
) -> dict[str, Any]:
    """Return the numbers with all that they depend on."""
    return {
        "numbers": result.numbers,
        "notes": result.notes,
        "checkpoint": checkpoint,
        "annotation_file": str(evaluator.annotation_file),
        "images_scored": evaluator.images,
        "images_without_ground_truth": evaluator.images_without_truth,
        "detections": len(result.detections),
        "score_threshold": SCORE_THRESHOLD,
        "iou_threshold": IOU_THRESHOLD,
        "max_detections": MAX_DETECTIONS,
        "precision": runtime.precision.value,
        "device": runtime.device.type,
        "versions": package_versions(),
    }


def write_report(given: str, key: str, report: dict[str, Any]) -> None:
    """Write a report as json to the file that a key gave. Raises UserError where that fails."""
    path = Path(given)
    with writing(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
