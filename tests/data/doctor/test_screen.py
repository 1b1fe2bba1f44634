"""What the terminal shows."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from data.doctor.report import DatasetReport, SplitReport
from data.doctor.screen import show
from data.doctor.statistics import Statistics
from data.doctor.truth import TruthScore
from ssd.config import Split

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("truth", "shown"),
    [
        (TruthScore(1.0, 9000), "1.000"),
        (TruthScore(1.0, 7), "1.000"),  # proven of the others too
        (TruthScore(0.5, 7), "0.500 (on 7 images)"),
        (TruthScore(0.5, 9000), "0.500"),
        (TruthScore(-1, 9000), "–"),
        (None, "–"),
    ],
)
def test_ap_of_a_part_is_said_to_be_one(truth: TruthScore | None, shown: str) -> None:
    figures = Statistics(9000, 0, 9000, 0, {"ant": 9000}, [], 0)
    console = Console(file=StringIO(), width=200)
    show(DatasetReport([SplitReport(Split.train, Path(), Path(), figures, truth)], []), console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "AP of the ground truth" in line]
    assert line.split("│")[2].strip() == shown
