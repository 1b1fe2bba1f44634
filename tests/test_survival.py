"""Whole runs that are asked to end, lose torchrun, or go on with other ranks. At random: scripts/chaos.py."""

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from data.demo import generate
from data.graph import GraphOptions
from data.index import read_index
from data.loader import DaliTrainLoader
from data.sampling import BatchPlan
from ssd.checkpoint import load_run, saved_steps
from ssd.config import DataConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.training.resume import images_per_rank
from tests.bench import LIMIT_S, ROOT, Bench, run, state_hash, succeeded, without_times
from tests.ssd.training.samples import saved_run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def uninterrupted(bench: Bench) -> str:
    succeeded(bench.train("uninterrupted", ranks=2))
    return "uninterrupted"


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not file.exists():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ranks_of(torchrun: subprocess.Popen[bytes]) -> list[int]:
    return [
        int(pid) for pid in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    ]


def preempted_step(bench: Bench, name: str, number: signal.Signals) -> int:
    """Check what a run that was asked to end has left; return its step."""
    left = json.loads((bench.folder / name / "preempted").read_text())
    assert left["signal"] == number.name
    newest = load_run(saved_steps(bench.folder / name / "checkpoints")[-1])
    assert newest["step"] == left["step"]
    step: int = left["step"]
    return step


def test_asked_to_end_by_any_signal_to_any_process_it_ends_as_if_it_had_not_been(
    bench: Bench, uninterrupted: str
):
    name, every = "preempted", ("checkpoint.every_steps=3", "checkpoint.keep=20")
    command = bench.train_command(name, *every, ranks=2)
    place = command.index("--standalone")
    command[place:place] = ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--max-restarts=2"]
    signals = ((3, signal.SIGTERM, False), (6, signal.SIGUSR1, True), (9, signal.SIGINT, True))
    for step, number, to_torchrun in signals:
        process = start(command)
        wait_for(bench.checkpoint(name, step), process)
        os.kill(process.pid if to_torchrun else ranks_of(process)[1], number)
        assert process.wait(60) != 0
        assert preempted_step(bench, name, number) >= step
    succeeded(bench.train(name, *every, ranks=2))
    assert not (bench.folder / name / "preempted").exists()
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted))
    assert without_times(bench.records(name)) == without_times(bench.records(uninterrupted))


def test_a_terminal_that_goes_away_costs_no_step(bench: Bench, uninterrupted: str):
    """As when an ssh session ends: SIGHUP, and what is printed from then on fails."""
    name, every = "hung_up", ("checkpoint.every_steps=3", "logging.every_steps=1")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        command = bench.train_command(name, *every, ranks=2)
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + LIMIT_S
    while not bench.checkpoint(name, 3).exists() and time.monotonic() < deadline:
        with suppress(BlockingIOError):
            os.read(terminal, 2**16)
        time.sleep(0.005)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert status != 0
    assert preempted_step(bench, name, signal.SIGHUP) >= 3
    succeeded(bench.train(name, *every, ranks=2))
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted))


def test_ranks_whose_torchrun_is_killed_save_and_end_and_the_next_launch_goes_on(
    bench: Bench, uninterrupted: str
):
    name, every = "orphaned", ("checkpoint.every_steps=3",)
    process = start(bench.train_command(name, *every, ranks=2))
    wait_for(bench.checkpoint(name, 3), process)
    process.kill()
    process.wait()
    succeeded(bench.train(name, *every, ranks=2))  # it waits until the folder is free
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted))
    assert without_times(bench.records(name)) == without_times(bench.records(uninterrupted))


def test_torchrun_restarts_a_killed_rank_and_the_run_ends_by_itself(bench: Bench, uninterrupted: str):
    name = "restarted"
    command = bench.train_command(name, "checkpoint.every_steps=3", ranks=2)
    command.insert(command.index("--standalone"), "--max-restarts=1")
    process = start(command)
    wait_for(bench.checkpoint(name, 3), process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    assert process.wait(LIMIT_S) == 0
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted))
    assert without_times(bench.records(name)) == without_times(bench.records(uninterrupted))


def test_a_picture_that_one_rank_cannot_read_in_an_evaluation_ends_all_with_the_step_saved(
    bench: Bench, uninterrupted: str
):
    name = "unreadable"
    annotations = json.loads((bench.data / "annotations" / "instances_val2017.json").read_text())
    path = bench.data / "val2017" / annotations["images"][2]["file_name"]  # batches of two: it is rank 1's
    content = path.read_bytes()
    path.write_bytes(content[:200])
    try:
        result = bench.train(name, "data.check=off", ranks=2)
    finally:
        path.write_bytes(content)
    assert result.returncode != 0
    assert str(path) in result.stderr
    assert "error: another rank can't go on; its message says why" in result.stderr
    assert "Connection closed" not in result.stderr
    assert [file.name for file in saved_steps(bench.folder / name / "checkpoints")] == ["step_00000006.pt"]
    succeeded(bench.train(name, ranks=2))
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted))
    assert without_times(bench.records(name)) == without_times(bench.records(uninterrupted))


def test_a_rank_that_hangs_ends_the_run_and_its_peers_show_where_they_wait(bench: Bench):
    name = "hanging"
    short = (
        "training.hang_timeout_minutes=0.1",
        "evaluation.timeout_minutes=0.1",
        "checkpoint.every_steps=3",
    )
    with (bench.folder / "hanging.txt").open("w") as output:
        process = subprocess.Popen(
            bench.train_command(name, *short, ranks=2),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        wait_for(bench.checkpoint(name, 3), process)
        os.kill(ranks_of(process)[1], signal.SIGSTOP)  # it neither runs nor ends
        assert process.wait(120) != 0  # torchrun kills it 30 s after its peer has ended
    told = (bench.folder / "hanging.txt").read_text()
    assert "Timeout (0:00:06)!" in told
    assert "take_step" in told


def test_a_bit_that_flips_on_one_rank_ends_the_run_before_it_is_saved(bench: Bench):
    name = "flipped"
    compared = ("training.compare_replicas_every=2", "checkpoint.every_steps=1")
    command = bench.train_command(name, *compared, ranks=2)
    place = command.index(str(ROOT / "train.py"))
    command[place : place + 1] = ["-m", "tests.flipped_bit"]
    result = run(command)
    assert result.returncode == 1
    told = r"error: the replicas have parted: \S+\.weight \(momentum\) of rank 1 differs from rank 0's"
    assert len(re.findall(told, result.stderr)) == 2  # both ranks say it
    assert bench.checkpoint(name, 1).exists()
    assert not bench.checkpoint(name, 2).exists()


def test_three_ranks_resume_exactly_where_told_to_be_deterministic(bench: Bench):
    steady = ("data.batch_size=2", "runtime.deterministic=true")
    succeeded(bench.train("steady", *steady, ranks=3))
    succeeded(bench.train("steady_stopped", *steady, "schedule.max_steps=3", ranks=3))
    succeeded(bench.train("steady_stopped", *steady, ranks=3))
    last = 2 * (24 // 6)  # of the 26 images two have no boxes
    assert state_hash(bench.checkpoint("steady_stopped", last)) == state_hash(
        bench.checkpoint("steady", last)
    )


def test_on_another_number_of_ranks_the_global_batch_stays(bench: Bench):
    name = "elastic"
    succeeded(bench.train(name, "schedule.max_steps=4", ranks=2))
    output = succeeded(bench.train(name, "data.batch_size=4", "schedule.max_steps=7", ranks=1))
    told = " ".join(output.replace("│", "").split())
    assert "global batch 4: 1 × 4" in told
    output = succeeded(bench.train(name, "data.batch_size=16", ranks=2))  # wins over it
    assert "global batch      │ 4: 2 × 2" in output
    assert [record["step"] for record in bench.records(name)] == [4, 5, 6, 7, 10, 12, 12]


def test_the_same_command_goes_on_again_and_again_on_another_number_of_ranks(bench: Bench):
    name = "shrunk"
    succeeded(bench.train(name, "data.batch_size=2", "schedule.max_steps=2", ranks=2))
    for step in (4, 6):
        output = succeeded(bench.train(name, "data.batch_size=2", f"schedule.max_steps={step}", ranks=1))
        told = " ".join(output.replace("│", "").split())
        assert "4: 1 × 4 (the run's; data.batch_size=2 is not used)" in told


def digest(tensors: list[torch.Tensor]) -> list[str]:
    return [hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in tensors]


def test_every_input_stays_the_same_over_two_one_three_and_two_ranks_of_an_epoch(tmp_path: Path):
    """What each rank is fed, put together in rank order, is what one rank would have been fed."""
    generate(tmp_path, 62, 2)
    index = read_index(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017")
    config = TrainConfig(name="x", data=DataConfig(batch_size=6))
    saved = saved_run(world_size=2, global_batch=12)

    def fed(world_size: int, step: int) -> tuple[list[int], list[str]]:
        ranks = Ranks(torch.device("cpu"), world_size=world_size)
        batch_size = images_per_rank(config, saved, ranks)
        loaders = [
            DaliTrainLoader(
                BatchPlan(index, batch_size * world_size, seed=3),
                GraphOptions(batch_size, torch.float32, threads=1, device_id=None),
                rank,
            )
            for rank in range(world_size)
        ]
        batches = [next(loader.batches(step)) for loader in loaders]
        parts = ("images", "target_offsets", "labels")
        joined = [torch.cat([getattr(batch, part) for batch in batches]) for part in parts]
        return [image["image_id"] for image in loaders[0].contents(step)], digest(joined)

    steps = len(index) // 12
    assert steps >= 4
    changing = [fed(world_size, step) for world_size, step in zip((2, 1, 3, 2), range(4), strict=True)]
    assert changing == [fed(1, step) for step in range(4)]
    seen = [image for ids, _ in [fed(2, step) for step in range(steps)] for image in ids]
    assert len(seen) == len(set(seen)) == 12 * steps
