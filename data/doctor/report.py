"""What was found out about a data set: as an object, and as json."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.doctor.findings import Finding, Kind, Severity
from data.doctor.pictures import KINDS
from data.doctor.statistics import Statistics
from data.doctor.truth import TruthScore
from ssd.config import Split

BETWEEN = "both"
"""What stands for a split's name where a finding is about the two of them."""


@dataclass(frozen=True)
class SplitReport:
    """What one split holds and what is wrong with it.

    truth: the ground truth as detections; None where it could not be scored.
    """

    split: Split
    annotation_file: Path
    image_folder: Path
    statistics: Statistics
    truth: TruthScore | None
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetReport:
    """The splits, and what is wrong between them."""

    splits: list[SplitReport]
    between: list[Finding]

    def findings(self) -> list[tuple[str, Finding]]:
        """Return every finding with the name of its split, by kind in the order of `Kind`."""
        of_splits = [(report.split.value, finding) for report in self.splits for finding in report.findings]
        order = {kind: place for place, kind in enumerate(Kind)}
        all_findings = of_splits + [(BETWEEN, finding) for finding in self.between]
        return sorted(all_findings, key=lambda each: order[each[1].kind])

    @property
    def is_fit(self) -> bool:
        """Whether training takes all of it."""
        return not self._count()[Severity.error]

    def verdict(self) -> str:
        """Say in one line whether it can be trained on."""
        counts = self._count()
        numbers = ", ".join(_counted(counts[severity], severity) for severity in Severity if counts[severity])
        if self.is_fit:
            return f"fit for training{f' ({numbers})' if numbers else ': nothing is wrong'}"
        mend = "; data.on_bad_image=quarantine would train without these images"
        return f"not fit for training ({numbers}){mend if self._quarantine_helps() else ''}"

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
                    "severity": finding.kind.value.severity.value,
                    "kind": finding.kind.value.title,
                    "split": split,
                    "where": finding.where,
                    "detail": finding.detail,
                    "mend": finding.kind.value.mend,
                }
                for split, finding in self.findings()
            ],
        }

    def _quarantine_helps(self) -> bool:
        """Tell whether training would begin without the bad images: an evaluation leaves none out."""
        errors = [
            (split, finding.kind)
            for split, finding in self.findings()
            if finding.kind.value.severity is Severity.error
        ]
        if any(split != Split.train.value or kind not in KINDS.values() for split, kind in errors):
            return False
        train = next(report.statistics for report in self.splits if report.split is Split.train)
        return len(errors) < train.images - train.images_without_boxes  # else perhaps none is left

    def _count(self) -> Counter[Severity]:
        return Counter(finding.kind.value.severity for _, finding in self.findings())


def _counted(number: int, severity: Severity) -> str:
    word = "note" if severity is Severity.info else severity.value
    return f"{number} {word}{'' if number == 1 else 's'}"
