"""The benchmarks as a user starts them, in the shortest way."""

import json
import sys

import pytest

from scripts import chaos
from tests.bench import Bench, run, succeeded


@pytest.mark.slow
@pytest.mark.parametrize("of", ["step", "saving", "startup", "scoring"])
def test_what_is_measured_is_written_and_nothing_left_that_a_run_would_resume_from(bench: Bench, of: str):
    out = bench.folder / f"{of}.json"
    short = ("benchmark.rounds=2", "benchmark.steps=1", "benchmark.warmup=1", "data.batch_size=2")
    command = bench.train_command(of, f"benchmark.of={of}", f"benchmark.out={out}", *short)
    printed = succeeded(run([part.replace("train.py", "scripts/benchmark.py") for part in command]))
    figures = json.loads(out.read_text())
    assert all(name in printed for name in figures)
    assert all(value > 0 for name, value in figures.items() if name.startswith(("seconds", "images")))
    assert not list((bench.folder / of).glob("**/*.*"))
    assert not list(bench.folder.glob("benchmark-*"))


@pytest.mark.unit
@pytest.mark.parametrize("argument", ["--kills=-1", "--terminations=many"])
def test_chaos_takes_whole_numbers(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["chaos.py", argument])
    with pytest.raises(SystemExit, match="2"):
        chaos.parse_options()
    assert "give a whole number from 0 on" in capsys.readouterr().err
