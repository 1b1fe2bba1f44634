"""scripts/benchmark.py as a user starts it, in the shortest way."""

import json
import sys

import pytest

from tests.bench import ROOT, Bench, run, succeeded

SHORT = ("benchmark.rounds=2", "benchmark.steps=1", "benchmark.warmup=1")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("of", ["step", "saving"])
def test_it_gives_figures_and_leaves_nothing_that_a_run_would_go_on_from(bench: Bench, of: str):
    out = bench.folder / f"{of}.json"
    command = bench.train_command(of, f"benchmark.of={of}", f"benchmark.out={out}", *SHORT)
    printed = succeeded(run([part.replace("train.py", "scripts/benchmark.py") for part in command]))
    figures = json.loads(out.read_text())
    assert all(name in printed for name in figures)
    assert all(value > 0 for name, value in figures.items() if name.startswith(("seconds", "images")))
    (ratio,) = (name.removesuffix(", lowest") for name in figures if name.endswith(", lowest"))
    assert figures[f"{ratio}, lowest"] <= figures[ratio] <= figures[f"{ratio}, highest"]
    assert not list((bench.folder / of).glob("**/*.*"))
    assert not list(bench.folder.glob("benchmark-*"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("benchmark.rounds=1", "a spread needs 2 rounds or more"),
        ("+benchmark.round=1", "unknown config key benchmark.round"),
    ],
)
def test_a_wrong_measurement_is_refused(bench: Bench, wrong: str, message: str):
    command = bench.train_command("wrong", wrong)
    result = run([part.replace("train.py", "scripts/benchmark.py") for part in command])
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_evaluation_is_compared_with_pycocotools(bench: Bench):
    annotations = bench.data / "annotations" / "instances_val2017.json"
    script = str(ROOT / "scripts" / "benchmark_evaluation.py")
    printed = succeeded(run([sys.executable, script, str(annotations), "--rounds=1", "--detections=20"]))
    assert "5 images, 100 detections; equal to the last bit: True" in printed
    refused = run([sys.executable, script, str(ROOT / "README.md")])
    assert refused.returncode == 1
    assert "give a COCO annotation file" in refused.stderr
    assert "Traceback" not in refused.stderr
