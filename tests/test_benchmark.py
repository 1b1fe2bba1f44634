"""benchmark.py with a user's command line, as short as possible."""

import json
import runpy
import sys

import pytest

from tests.bench import ROOT, Bench


@pytest.mark.slow
@pytest.mark.parametrize("of", ["step", "saving", "startup", "scoring"])
def test_what_is_measured_is_written_and_nothing_left_that_a_run_would_resume_from(
    bench: Bench, of: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = bench.folder / f"{of}.json"
    short = ("benchmark.rounds=2", "benchmark.steps=1", "benchmark.warmup=1", "data.batch_size=2")
    _, _, *overrides = bench.train_command(of, f"benchmark.of={of}", f"benchmark.out={out}", *short)
    script = str(ROOT / "scripts" / "benchmark.py")
    monkeypatch.setattr(sys, "argv", [script, *overrides])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert all(name in printed for name in figures)
    assert all(
        value > 0 for name, value in figures.items() if name.startswith(("seconds", "images", "operators"))
    )
    assert not list((bench.folder / of).glob("**/*.*"))
    assert not list(bench.folder.glob("benchmark-*"))
