"""The first minutes on a GPU, on a CPU: the script whole, and all that it must not pass over."""

import importlib.util
import itertools
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from data.graph import GraphOptions
from data.sampling import BatchPlan
from ssd.batches import TrainBatch
from ssd.errors import UserError
from tests.bench import ROOT, Bench

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


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/check_gpu.py where there is one core and no GPU; it leaves in tmp_path what it leaves."""
    spec = importlib.util.spec_from_file_location("check_gpu", ROOT / "scripts" / "check_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GPUS", 0)
    monkeypatch.setattr(module, "CORES", 1)
    monkeypatch.setattr(module, "default_threads", lambda _: 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # which the script sets too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return module


@pytest.mark.slow
@pytest.mark.distributed
def test_the_script_runs_whole_and_leaves_nothing(
    script: ModuleType,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes minutes on a CPU
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *SMALLEST, f"--data={bench.data}"])
    script.main()
    printed = capsys.readouterr().out
    assert "2 crops, off by 0.000 in the mean, 0 at most" in printed
    assert printed.count("– needs 1 GPU") == 2
    assert printed.count("operators a step, 0 host waits") == 2
    assert "the same weights and momenta after every step" in printed
    assert printed.count("are the same\n") == 2
    assert "what to set: data.decoder=cpu data.batch_size=2 data.threads=1 runtime=bf16" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.distributed
def test_what_crashes_or_ends_with_other_weights_is_named(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    planted = tmp_path / "planted.py"
    planted.write_text(CRASHES_AND_DIFFERS)
    for name in ("BENCHMARK", "TRAIN"):
        monkeypatch.setattr(script, name, str(planted))
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", *SMALLEST])
    with pytest.raises(SystemExit) as ended:
        script.main()
    steps = "steps, runtime=bf16 runtime.compile=false; steps, runtime=bf16 runtime.compile=true"
    runs = "runs, two ranks over gloo; runs, made again; runs, resumed"
    assert str(ended.value).startswith(f"error: failed: {steps}; {runs}; their output is in {tmp_path}")
    printed = capsys.readouterr().out
    assert printed.count("FAILED: ended by SIGSEGV") == 2
    assert printed.count("FAILED: Signal 11 (SIGSEGV) received by PID") == 1
    for step in (1, 2):
        assert f"FAILED: 1 of 2 tensors differ after step {step}: weight, …" in printed
    planted.unlink()
    (kept,) = tmp_path.iterdir()
    assert len(list(kept.iterdir())) == 5


@pytest.mark.unit
@pytest.mark.parametrize(
    ("code", "may_not_fit", "told", "is_failure"),
    [
        ("print('error: no pictures')\nexit(1)", False, "FAILED: no pictures", True),
        ("raise RuntimeError('CUDA out of memory')", False, "FAILED: RuntimeError: CUDA out of memory", True),
        ("raise RuntimeError('CUDA out of memory')", True, "– more than the memory holds", False),
        ("import time\ntime.sleep(60)", True, "FAILED: no end after 0.02 minutes", True),
    ],
)
def test_how_a_command_ended_is_told(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: str,
    may_not_fit: bool,
    told: str,
    is_failure: bool,
):
    checks = script.Checks(tmp_path, minutes=0.02)
    assert not checks.run("planted", "-c", code, may_not_fit=may_not_fit)
    assert told in capsys.readouterr().out
    assert checks.failed == ["planted"] * is_failure


class FaultyLoader:
    """One thread fails on the second batch and shows something else in a corner of the third."""

    def __init__(self, _: BatchPlan, options: GraphOptions) -> None:
        self.is_faulty = options.threads == 1

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        for step in itertools.count(first_step):
            images = torch.full((2, 3, 300, 300), 0.02 * self.is_faulty)  # a level
            if self.is_faulty and step == 1:
                raise UserError("step 1: DALI cannot read")
            if self.is_faulty and step == 2:
                images[0, :, :10, 290:] = 0.5
            yield TrainBatch(images, torch.empty(0), torch.empty(0))


@pytest.mark.unit
def test_crops_that_fail_or_look_different_are_counted(
    script: ModuleType, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(script, "DaliTrainLoader", FaultyLoader)
    monkeypatch.setattr(script, "CORES", 2)  # the reference's threads
    told = r"6 crops, off by 1.* at most, of 255 levels, 1 look different; 1 batches failed \['step 1: DALI"
    with pytest.raises(SystemExit, match=told):
        script.compare_crops(Namespace(crops_by="cpu", crops=7, batch_sizes=[2], data=bench.data))
