import json
from pathlib import Path

import pytest

from ssd.errors import UserError
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


@pytest.mark.parametrize(
    "garbled", [b"\0\0\0\0", b'{"step": 1', b"\xff", b"[]", b"7", b'{"AP": 0.1}', b'{"step": "x"}']
)
def test_a_garbled_line_is_named(garbled: bytes, tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", 10, 20, 30)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], garbled, lines[2], b""]))
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: line 2 is no record of a step .* mend or remove it"
    ):
        MetricsFile(path, first_step=30)
    MetricsFile(path, first_step=0).close()  # what comes anew is not looked at
    assert steps(path) == []


def test_what_is_no_number_is_null_and_the_file_stays_json(tmp_path: Path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1, "loss": float("nan"), "learning_rate": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "learning_rate": 0.1}\n'


def test_an_evaluation_that_will_be_done_again_is_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for record in ({"step": 5, "AP": 0.1}, {"step": 9, "loss": 1.0}, {"step": 9, "AP": 0.2}):
        metrics.write(record)
    metrics.close()
    MetricsFile(path, first_step=9, cut_evaluation=False).close()
    assert steps(path) == [5, 9, 9]
    MetricsFile(path, first_step=9, cut_evaluation=True).close()
    assert steps(path) == [5, 9]


def test_records_that_a_full_disk_refused_come_when_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1})
    whole = metrics._file

    class Full:
        """Takes five bytes of anything."""

        name, truncate = whole.name, whole.truncate

        def write(self, text: bytes) -> int:
            return whole.write(text[:5])

    monkeypatch.setattr(metrics, "_file", Full())
    for step in (2, 3):
        with pytest.raises(OSError, match="5 of"):
            metrics.write({"step": step})
        assert steps(tmp_path / "metrics.jsonl") == [1]
    monkeypatch.undo()
    metrics.write({"step": 4})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
