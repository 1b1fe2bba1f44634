import json
from pathlib import Path

import pytest

from ssd.training.metrics import MetricsFile

pytestmark = pytest.mark.unit


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def written(path: Path, *numbers: int) -> Path:
    metrics = MetricsFile(path, 0)
    for number in numbers:
        metrics.write({"step": number})
    metrics.close()
    return path


def test_records_after_the_resumed_step_are_cut(tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", 10, 20, 20, 30)
    metrics = MetricsFile(path, first_step=20)
    assert steps(path) == [10, 20, 20]
    metrics.write({"step": 30})
    assert steps(path) == [10, 20, 20, 30]


def test_a_run_from_the_start_keeps_nothing(tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", 10)
    MetricsFile(path, first_step=0).close()
    assert steps(path) == []


def test_a_half_written_last_line_is_cut(tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", 10, 20)
    path.write_text(path.read_text()[:-3])
    MetricsFile(path, first_step=20).close()
    assert steps(path) == [10]
