"""What was found out about a data set: its figures, as json and as a person reads them in the terminal."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.doctor.findings import Finding, Severity
from data.graph import MATCH_IOU
from ssd.annotations import Annotations, inside_px
from ssd.boxes import BOXES_PER_CELL, IMAGE_SIZE, MAP_SIZES, SCALES_PX, default_boxes
from ssd.config import Split

SHOWN_FINDINGS = 5  # of a kind; the json has all
SHOWN_CLASSES = 20  # those with most boxes
STYLES = {Severity.error: "bold red", Severity.warning: "yellow", Severity.info: "cyan"}
SIZE_LIMITS_PX = (0, *SCALES_PX)  # of the default boxes (RECIPE 2); the last class holds all that are larger


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


NOTHING = Statistics(0, 0, 0, 0, {}, [SizeClass(*limits, 0, 0) for limits in pairwise(SIZE_LIMITS_PX)], 0)
"""The figures of a split whose annotation file can't be read."""


@dataclass(frozen=True)
class TruthScore:
    """AP of the ground truth as detections, −1 where no box counts, and how many images were scored."""

    ap: float
    images: int


@dataclass(frozen=True)
class SplitReport:
    """What one split holds. truth: None where the ground truth could not be scored."""

    split: Split
    annotation_file: Path
    image_folder: Path
    statistics: Statistics
    truth: TruthScore | None


@dataclass(frozen=True)
class DatasetReport:
    """The splits, and all findings by kind, each with its split's name, or "both"."""

    splits: list[SplitReport]
    findings: list[tuple[str, Finding]]

    @property
    def is_fit(self) -> bool:
        """Whether training takes all of it."""
        return all(finding.kind.severity is not Severity.error for _, finding in self.findings)

    def verdict(self) -> str:
        """Say in one line whether it can be trained on."""
        counts = Counter(finding.kind.severity for _, finding in self.findings)
        words = {Severity.error: "error", Severity.warning: "warning", Severity.info: "note"}
        numbers = ", ".join(
            f"{counts[each]} {word}{'s'[: counts[each] != 1]}" for each, word in words.items() if counts[each]
        )
        fit = "fit for training" if self.is_fit else "not fit for training"
        return f"{fit} ({numbers})" if numbers else f"{fit}: nothing is wrong"

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "fit": self.is_fit,
            "verdict": self.verdict(),
            "splits": {
                report.split.value: {
                    "annotation_file": str(report.annotation_file),
                    "image_folder": str(report.image_folder),
                    **asdict(report.statistics),
                    "ground_truth_ap": report.truth and report.truth.ap,
                    "ground_truth_images_scored": report.truth and report.truth.images,
                }
                for report in self.splits
            },
            "findings": [
                {
                    "severity": finding.kind.severity.value,
                    "kind": finding.kind.title,
                    "split": split,
                    "where": finding.where,
                    "detail": finding.detail,
                    "fix": finding.kind.fix,
                }
                for split, finding in self.findings
            ],
        }

    def show(self, console: Console) -> None:
        """Print figures, findings by kind and the verdict."""
        console.print(self._table("data set", self._figures()))
        console.print(self._table("boxes by class", self._classes()))
        for kind, group in groupby(self.findings, key=lambda each: each[1].kind):
            findings = [*group]
            severity = Text(kind.severity.value, style=STYLES[kind.severity])
            console.print(severity, f"{kind.title}: {len(findings)}; {kind.fix}")
            for split, finding in findings[:SHOWN_FINDINGS]:
                console.print(f"    {split} {finding.where}: {finding.detail}")
            if len(findings) > SHOWN_FINDINGS:
                console.print(f"    and {len(findings) - SHOWN_FINDINGS} more")
        console.print(self.verdict(), style="bold green" if self.is_fit else "bold red")

    def _table(self, title: str, rows: Iterable[tuple[str, list[str]]]) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column()
        for report in self.splits:
            table.add_column(report.split.value, justify="right")
        for name, values in rows:
            table.add_row(name, *values)
        return table

    def _figures(self) -> Iterable[tuple[str, list[str]]]:
        figures = [report.statistics for report in self.splits]
        yield "images", [f"{each.images}" for each in figures]
        yield "images without boxes", [f"{each.images_without_boxes}" for each in figures]
        yield "classes", [f"{len(each.boxes_of_class)}" for each in figures]
        yield "boxes used", [f"{each.boxes}" for each in figures]
        yield "of them crowd", [f"{each.crowd_boxes}" for each in figures]
        yield (
            f"no default box above IoU {MATCH_IOU}",
            [f"{each.unmatched} ({each.unmatched / max(each.boxes, 1):.1%})" for each in figures],
        )
        for sizes in zip(*(each.sizes for each in figures), strict=True):
            yield (
                f"side {sizes[0].from_px}–{sizes[0].to_px} of {IMAGE_SIZE} px (none)",
                [f"{size.boxes} ({size.unmatched})" for size in sizes],
            )
        yield "AP of the ground truth", [_shown_truth(report) for report in self.splits]

    def _classes(self) -> Iterable[tuple[str, list[str]]]:
        counts = [report.statistics.boxes_of_class for report in self.splits]
        names = sorted(counts[0] | counts[-1], key=lambda name: -counts[0].get(name, 0))
        for name in names[:SHOWN_CLASSES]:
            yield name, [f"{each.get(name, '–')}" for each in counts]
        if len(names) > SHOWN_CLASSES:
            yield f"and {len(names) - SHOWN_CLASSES} more", []


def _shown_truth(report: SplitReport) -> str:
    truth = report.truth
    if truth is None or truth.ap < 0:
        return "–"
    part = f" (on {truth.images} images)" if truth.images < report.statistics.images else ""
    return f"{truth.ap:.3f}{part}"


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
    sizes = np.searchsorted(SIZE_LIMITS_PX[1:-1], sides_px, side="right")
    counts = np.bincount(sizes, minlength=len(SCALES_PX)).tolist()
    counts_unmatched = np.bincount(sizes[unmatched], minlength=len(SCALES_PX)).tolist()
    return Statistics(
        images=len(annotations),
        images_without_boxes=len(annotations) - len(np.unique(images)),
        boxes=len(labels),
        crowd_boxes=int(annotations.crowd[used].sum()),
        boxes_of_class=boxes_of_class,
        sizes=[*map(SizeClass, SIZE_LIMITS_PX[:-1], SIZE_LIMITS_PX[1:], counts, counts_unmatched)],
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
