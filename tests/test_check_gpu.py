"""check_gpu.py on a CPU: the whole script, and every failure that it must report."""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from scripts import check_gpu
from ssd.batches import TrainBatch
from tests.bench import Bench

SMALLEST = ("--crops=2", "--steps=2", "--batch-sizes=2", "--runtimes=bf16", "--backbone=resnet18")
CRASHES_AND_DIFFERS = """
import os, signal, sys
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
if "benchmark.out" in given or os.environ.get("RANK") == "1":
    os.kill(os.getpid(), signal.SIGSEGV)
import torch
from pathlib import Path
from ssd.checkpoint import step_file, write
for step in (1, 2):
    weights = {"weight": torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8)}
    state = {"format": 1, "model": weights, "optimizer": {"state": {}}, "scores": []}
    write(step_file(Path(given["hydra.run.dir"]) / "checkpoints", step), state)
"""


@pytest.fixture(autouse=True)
def _one_core_and_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as on a machine with one core and no GPU; temporary files go to tmp_path."""
    monkeypatch.setattr(check_gpu, "GPUS", 0)
    monkeypatch.setattr(check_gpu, "CORES", 1)
    monkeypatch.setattr(check_gpu, "DECODERS", ("cpu",))
    monkeypatch.setattr(check_gpu, "default_threads", lambda _: 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the script sets it too; this restores it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@pytest.mark.distributed
def test_the_script_runs_whole_and_leaves_nothing(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes minutes on a CPU
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *SMALLEST, f"--data={bench.data}"])
    check_gpu.main()
    printed = capsys.readouterr().out
    assert "2 crops, off by 0.000 of 255 levels, 0 in the worst patch\n" in printed
    assert printed.count("waiting for data, 0 host waits a step\n") == 2
    assert "the same weights and momenta after every step" in printed
    assert printed.count("are the same\n") == 2
    assert "what to set: data.decoder=cpu data.batch_size=2 data.threads=1 runtime=bf16" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.distributed
def test_what_crashes_or_ends_with_other_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    planted = tmp_path / "planted.py"
    planted.write_text(CRASHES_AND_DIFFERS)
    for name in ("BENCHMARK", "TRAIN"):
        monkeypatch.setattr(check_gpu, name, str(planted))
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *SMALLEST])
    with pytest.raises(SystemExit) as ended:
        check_gpu.main()
    steps = "steps, runtime=bf16 runtime.compile=false; steps, runtime=bf16 runtime.compile=true"
    runs = "runs, two ranks over gloo; runs, repeated; runs, resumed"
    assert str(ended.value).startswith(f"error: failed: {steps}; {runs}; all outputs are in {tmp_path}")
    printed = capsys.readouterr().out
    assert printed.count("FAILED: died with <Signals.SIGSEGV: 11>") == 2
    assert printed.count("Signal 11 (SIGSEGV) received by PID") == 1
    for step in (1, 2):
        assert f"FAILED: weight and 0 others differ after step {step} " in printed
    planted.unlink()
    (kept,) = tmp_path.iterdir()
    assert {path.suffix for path in kept.iterdir()} == {".log"}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("code", "may_not_fit", "told"),
    [
        (
            "print('error: no pictures'); exit(1)",
            False,
            "FAILED: returned non-zero exit status 1. error: no pic",
        ),
        ("raise RuntimeError('CUDA out of memory')", False, "status 1. RuntimeError: CUDA out of memory"),
        ("raise RuntimeError('CUDA out of memory')", True, "– does not fit in memory"),
        ("import time; time.sleep(60)", True, "FAILED: timed out after 1"),
    ],
)
def test_how_a_command_ended_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: str,
    may_not_fit: bool,
    told: str,
):
    checks = check_gpu.Checks(Namespace(minutes=0.02, backbone=""), tmp_path, tmp_path)
    assert checks.run("planted", ["-c", code], {}, may_not_fit) is None
    assert told in capsys.readouterr().out
    assert checks.failed == ["planted"] * ("FAILED" in told or not may_not_fit)


def looking_different() -> Iterator[TrainBatch]:
    """Images that are one level off; one of them shows something else in a corner."""
    for corner in (0.02, 0.5):
        images = torch.full((2, 3, 300, 300), 0.02)
        images[0, :, :10, 290:] = corner
        yield TrainBatch(images, torch.empty(0), torch.empty(0))


@pytest.mark.unit
def test_crops_that_look_different_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    black = [TrainBatch(torch.zeros(2, 3, 300, 300), torch.empty(0), torch.empty(0))] * 2
    made = iter([looking_different(), iter(black)])
    monkeypatch.setattr(check_gpu, "DaliTrainLoader", lambda *_: Mock(batches=lambda _: next(made)))
    told = r"4 crops, off by 1\.\d+ of 255 levels, 29 in the worst patch: 1 look different"
    with pytest.raises(SystemExit, match=told):
        check_gpu.compare_crops(Namespace(crops_by="cpu", crops=3, batch_sizes=[2], data=bench.data))
