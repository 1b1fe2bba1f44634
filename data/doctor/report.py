"""The report on a data set: figures and findings, as json and as text in the terminal."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby
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

SHOWN_FINDINGS = 5  # per kind; the json has all
SHOWN_CLASSES = 20  # the ones with the most boxes
STYLES = {Severity.error: "bold red", Severity.warning: "yellow", Severity.info: "cyan"}
SIZE_LIMITS_PX = (0, *SCALES_PX)  # scales of the default boxes (RECIPE 2); the last bin has no upper limit


@dataclass
class SplitReport:
    """Figures of the part of a split that training uses, 0 if its annotation file can't be read.

    All box counts are of used boxes, including crowd boxes. boxes_of_class: by category name, in file order.
    sizes: counts of the boxes with from_px ≤ side < to_px; the side is the square root of the area at
    300×300 pixels. unmatched: boxes that have no default box with an IoU above 0.5; each still claims its
    best one.
    ground_truth_ap: AP of the ground truth as detections, on ground_truth_images_scored images; −1 if no box
    counts, None if it could not be scored.
    """

    annotation_file: str
    image_folder: str
    images: int = 0
    images_without_boxes: int = 0
    boxes: int = 0
    crowd_boxes: int = 0
    boxes_of_class: dict[str, int] = field(default_factory=dict)
    sizes: list[dict[str, int]] = field(default_factory=list)
    unmatched: int = 0
    ground_truth_ap: float | None = None
    ground_truth_images_scored: int | None = None


@dataclass(frozen=True)
class DatasetReport:
    """The splits by name, and all findings sorted by kind, each with the name of its split or "both"."""

    splits: dict[str, SplitReport]
    findings: list[tuple[str, Finding]]

    @property
    def is_fit(self) -> bool:
        """Whether training accepts the whole set."""
        return all(finding.kind.severity is not Severity.error for _, finding in self.findings)

    def verdict(self) -> str:
        """Say in one line whether the set can be trained on."""
        counts = Counter(finding.kind.severity for _, finding in self.findings)
        words = {Severity.error: "error", Severity.warning: "warning", Severity.info: "note"}
        numbers = ", ".join(
            f"{counts[each]} {word}{'s'[: counts[each] != 1]}" for each, word in words.items() if counts[each]
        )
        fit = "fit for training" if self.is_fit else "not fit for training"
        return f"{fit} ({numbers})" if numbers else f"{fit}: no problems found"

    def as_json(self) -> dict[str, Any]:
        """Return the whole report as plain values."""
        return {
            "fit": self.is_fit,
            "verdict": self.verdict(),
            "splits": {name: asdict(report) for name, report in self.splits.items()},
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
        """Print the figures, the findings by kind and the verdict."""
        figures = {name: _figures(report) for name, report in self.splits.items()}
        console.print(_table("data set", figures, [*dict.fromkeys(chain(*figures.values()))]))
        classes = {name: report.boxes_of_class for name, report in self.splits.items()}
        first = next(iter(classes.values()))
        names = sorted(dict.fromkeys(chain(*classes.values())), key=lambda name: -first.get(name, 0))
        table = _table("boxes by class", classes, names[:SHOWN_CLASSES])
        if len(names) > SHOWN_CLASSES:
            table.add_row(f"and {len(names) - SHOWN_CLASSES} more")
        console.print(table)
        for kind, group in groupby(self.findings, key=lambda each: each[1].kind):
            findings = [*group]
            severity = Text(kind.severity.value, style=STYLES[kind.severity])
            console.print(severity, f"{kind.title}: {len(findings)}; {kind.fix}")
            for split, finding in findings[:SHOWN_FINDINGS]:
                console.print(f"    {split} {finding.where}: {finding.detail}")
            if len(findings) > SHOWN_FINDINGS:
                console.print(f"    and {len(findings) - SHOWN_FINDINGS} more")
        console.print(self.verdict(), style="bold green" if self.is_fit else "bold red")


def _figures(report: SplitReport) -> dict[str, object]:
    truth, scored = report.ground_truth_ap, report.ground_truth_images_scored or 0
    part = f" (on {scored} images)" if scored < report.images else ""
    return {
        "images": report.images,
        "images without boxes": report.images_without_boxes,
        "classes": len(report.boxes_of_class),
        "boxes used": report.boxes,
        "of which crowd boxes": report.crowd_boxes,
        f"unmatched (no default box above IoU {MATCH_IOU})": (
            f"{report.unmatched} ({report.unmatched / max(report.boxes, 1):.1%})"
        ),
        "AP of the ground truth": "–" if truth is None or truth < 0 else f"{truth:.3f}{part}",
        **{
            f"side {size['from_px']}–{size['to_px']} of {IMAGE_SIZE} px (unmatched)": (
                f"{size['boxes']} ({size['unmatched']})"
            )
            for size in report.sizes
        },
    }


def _table(title: str, columns: dict[str, dict[str, Any]], names: list[str]) -> Table:
    """Return a table with the rows `names`; each column holds its values by row name."""
    table = Table("", title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, justify="right")
    for name in names:
        table.add_row(name, *(f"{column.get(name, '–')}" for column in columns.values()))
    return table


def describe(annotations: Annotations, used: NDArray[np.bool_], file: str, folder: str) -> SplitReport:
    """Count the boxes that training uses. used: B. Categories with the same name are counted together."""
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
    limits_px = (*SIZE_LIMITS_PX[:-1], np.inf)
    counts, counts_unmatched = (np.histogram(of, limits_px)[0] for of in (sides_px, sides_px[unmatched]))
    columns = (SIZE_LIMITS_PX[:-1], SIZE_LIMITS_PX[1:], counts.tolist(), counts_unmatched.tolist())
    return SplitReport(
        annotation_file=file,
        image_folder=folder,
        images=len(annotations),
        images_without_boxes=len(annotations) - len(np.unique(images)),
        boxes=len(labels),
        crowd_boxes=int(annotations.crowd[used].sum()),
        boxes_of_class=boxes_of_class,
        sizes=[
            {"from_px": low, "to_px": high, "boxes": boxes, "unmatched": none}
            for low, high, boxes, none in zip(*columns, strict=True)
        ],
        unmatched=int(unmatched.sum()),
    )


def best_ious(boxes_cxcywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the highest IoU of each box, B×4 relative to the image, with any default box: B.

    Among default boxes of one shape, the one with the nearest center on each axis overlaps most. So only one
    cell per shape is checked, 30 boxes instead of 8732.
    """
    centers, sizes = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    best = np.zeros(len(boxes_cxcywh))
    maps = default_boxes().double().split([s * c**2 for s, c in zip(BOXES_PER_CELL, MAP_SIZES, strict=True)])
    for boxes_of_map, shapes, cells in zip(maps, BOXES_PER_CELL, MAP_SIZES, strict=True):
        grid = boxes_of_map.numpy().reshape(shapes, cells, cells, 4)
        middles = (grid[0, 0, 1:, 0] + grid[0, 0, :-1, 0]) / 2  # halfway between cell centers
        column, row = np.searchsorted(middles, centers).T
        for default in grid[:, row, column]:  # B×4
            right_bottom = np.minimum(centers + sizes / 2, default[:, :2] + default[:, 2:] / 2)
            left_top = np.maximum(centers - sizes / 2, default[:, :2] - default[:, 2:] / 2)
            shared = np.maximum(right_bottom - left_top, 0).prod(axis=1)
            union = sizes.prod(axis=1) + default[:, 2:].prod(axis=1) - shared
            best = np.maximum(best, shared / union)
    return best
