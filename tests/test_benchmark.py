"""The benchmarks as a user starts them, in the shortest way."""

import json
import sys
from pathlib import Path

import pytest

from data.demo import generate
from scripts import benchmark_coco, chaos
from ssd.config import DataConfig
from tests.bench import Bench, run, succeeded


@pytest.mark.slow
@pytest.mark.parametrize("of", ["step", "saving"])
def test_a_training_is_measured_and_leaves_nothing_that_a_run_would_resume_from(bench: Bench, of: str):
    out = bench.folder / f"{of}.json"
    short = ("benchmark.rounds=2", "benchmark.steps=1", "benchmark.warmup=1")
    command = bench.train_command(of, f"benchmark.of={of}", f"benchmark.out={out}", *short)
    printed = succeeded(run([part.replace("train.py", "scripts/benchmark.py") for part in command]))
    figures = json.loads(out.read_text())
    assert all(name in printed for name in figures)
    assert all(value > 0 for name, value in figures.items() if name.startswith(("seconds", "images")))
    (ratio,) = (name.removesuffix(", lowest") for name in figures if name.endswith(", lowest"))
    assert figures[f"{ratio}, lowest"] <= figures[ratio] <= figures[f"{ratio}, highest"]
    assert not list((bench.folder / of).glob("**/*.*"))
    assert not list(bench.folder.glob("benchmark-*"))


@pytest.mark.slow
def test_every_side_opens_the_data_and_one_is_measured(tmp_path: Path):
    generate(tmp_path / "set", 40, 2)
    data = DataConfig(path=str(tmp_path / "set"))
    for open_data in benchmark_coco.STARTS.values():
        open_data(data, tmp_path)
    seconds, cpu_seconds, megabytes = benchmark_coco.start("pycocotools", data, tmp_path)
    assert seconds > 0
    assert cpu_seconds > 0
    assert megabytes >= 0


@pytest.mark.unit
def test_scoring_is_compared_with_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generate(tmp_path / "set", 1, 5)
    with pytest.raises(SystemExit, match="False"):  # not unequal
        benchmark_coco.main(["scoring", str(tmp_path / "set"), "--rounds=1", "--detections=20"])
    assert "5 images, 100 detections; equal to the last bit: True" in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (benchmark_coco.main, ["startup", "missing"], "missing is not in COCO layout: missing/annotations/"),
        (benchmark_coco.main, ["startup", "missing", "--rounds=0"], "give at least 1 for --times, --rounds"),
        (benchmark_coco.main, ["make", "missing", "--times=-1"], "give at least 1 for --times, --rounds"),
        (benchmark_coco.main, ["make", "."], ". exists: name a new folder"),
        (chaos.parse_options, ["--kills=-1"], "argument --kills: '-1': give a whole number from 0 on"),
        (chaos.parse_options, ["--terminations=many"], "'many': give a whole number from 0 on"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_arguments_that_make_no_sense_are_refused(
    main, arguments, message, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
