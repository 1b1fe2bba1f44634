"""What was found out about a data set, as json and as a person reads it in the terminal."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.doctor.findings import IMAGE_DEFECTS, Finding, Severity
from data.doctor.statistics import Statistics
from data.graph import MATCH_IOU
from ssd.boxes import IMAGE_SIZE
from ssd.config import Split

SHOWN_FINDINGS = 5  # of a kind; the json has all
SHOWN_CLASSES = 20  # those with most boxes
STYLES = {Severity.error: "bold red", Severity.warning: "yellow", Severity.info: "cyan"}


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
        return not self._errors()

    def verdict(self) -> str:
        """Say in one line whether it can be trained on."""
        counts = Counter(finding.kind.severity for _, finding in self.findings)
        words = {Severity.error: "error", Severity.warning: "warning", Severity.info: "note"}
        numbers = ", ".join(
            f"{counts[severity]} {word}{'' if counts[severity] == 1 else 's'}"
            for severity, word in words.items()
            if counts[severity]
        )
        if self.is_fit:
            return f"fit for training{f' ({numbers})' if numbers else ': nothing is wrong'}"
        quarantine = "; data.on_bad_image=quarantine would train without these images"
        return f"not fit for training ({numbers}){quarantine if self._quarantine_helps() else ''}"

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
                    "mend": finding.kind.fix,
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

    def _errors(self) -> list[tuple[str, Finding]]:
        return [each for each in self.findings if each[1].kind.severity is Severity.error]

    def _quarantine_helps(self) -> bool:
        """Tell whether training would begin without the bad images: an evaluation leaves none out."""
        errors = self._errors()
        if any(
            split != Split.train.value or finding.kind not in IMAGE_DEFECTS.values()
            for split, finding in errors
        ):
            return False
        train = next(report.statistics for report in self.splits if report.split is Split.train)
        return len(errors) < train.images - train.images_without_boxes  # else perhaps none is left

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
