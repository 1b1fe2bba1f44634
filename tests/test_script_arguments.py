"""Scripts without a config refuse what makes no sense on their command line, in a line that names it."""

import sys
from pathlib import Path

import pytest

from scripts import benchmark_startup, chaos

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("wrong", ["--kills=-1", "--terminations=many", "--kills=1.5"])
def test_chaos_takes_counts(wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["chaos.py", wrong])
    with pytest.raises(SystemExit, match="2"):
        chaos.parse_options()
    name, value = wrong.split("=")
    assert f"argument {name}: '{value}': give a whole number from 0 on" in capsys.readouterr().err


def test_start_up_is_measured_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        benchmark_startup.main([str(tmp_path)])
    missing = tmp_path / "annotations" / "instances_train2017.json"
    assert f"is not in COCO layout: {missing} does not exist" in capsys.readouterr().err


def test_start_up_is_measured_at_least_once(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        benchmark_startup.main(["--rounds=0"])
    assert "--rounds: '0': give a whole number from 1 on" in capsys.readouterr().err
