"""Whole runs that are asked to end, killed, hung, or resumed by other ranks. At random: scripts/chaos.py."""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from ssd.training.state import images_per_rank
from tests.bench import LIMIT_S, ROOT, Bench, run, start, state_hash, succeeded, wait_for, without_times
from tests.ssd.training.samples import saved_run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SAVING = ("checkpoint.every_steps=1", "checkpoint.keep=20")


def ranks_of(torchrun: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def assert_preempted(bench: Bench, name: str, number: signal.Signals, step: int) -> None:
    """Check what a run has left that was asked to end after this step."""
    left = json.loads((bench.folder / name / "preempted").read_text())
    assert left["signal"] == number.name
    newest = load_run(saved_steps(bench.folder / name / "checkpoints")[-1])
    assert newest["step"] == left["step"] >= step
    told = (bench.folder / name / "run.log").read_text()
    assert told.count(f"stopped by {number.name} after step {left['step']} of") == 1  # rank 0 alone says it


def hang_up(command: list[str], file: Path) -> int:
    """Start a command in a terminal that goes away once a file is there: an ssh session that ends.

    Its processes get SIGHUP, and what they print from then on fails. Returns the command's wait status.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + LIMIT_S
    while not file.exists() and time.monotonic() < deadline:
        with suppress(BlockingIOError):
            os.read(terminal, 2**16)
        time.sleep(0.005)
    os.close(terminal)
    return os.waitpid(child, 0)[1]


@contextmanager
def cut_short(path: Path) -> Iterator[None]:
    """Leave only the beginning of a file there for a while."""
    content = path.read_bytes()
    path.write_bytes(content[:200])
    try:
        yield
    finally:
        path.write_bytes(content)


def test_whatever_ends_it_a_run_of_two_ranks_goes_on_and_ends_as_if_nothing_had(
    bench: Bench, name: str, tmp_path: Path
):
    """One life of a run: each launch goes on where the one before was ended."""
    data = shutil.copytree(bench.data, tmp_path / "demo")
    command = bench.train_command(name, f"data.path={data}", *SAVING, ranks=2)

    assert hang_up([*command, "logging.every_steps=1"], bench.checkpoint(name, 1)) != 0
    assert_preempted(bench, name, signal.SIGHUP, 1)

    # What a scheduler sends to torchrun, which passes it on to the ranks.
    process = start(command)
    wait_for(bench.checkpoint(name, 4), process)
    process.terminate()
    assert process.wait(LIMIT_S) != 0
    assert_preempted(bench, name, signal.SIGTERM, 4)

    # A picture that one rank can't read in the evaluation. Batches of two: the third one is rank 1's.
    images = json.loads((data / "annotations" / "instances_val2017.json").read_text())["images"]
    path = data / "val2017" / images[2]["file_name"]
    with cut_short(path):
        result = run([*command, "data.check=off"])
    assert result.returncode != 0
    assert str(path) in result.stderr
    assert "error: another rank can't go on; its message says why" in result.stderr
    assert "Connection closed" not in result.stderr
    assert saved_steps(bench.folder / name / "checkpoints")[-1] == bench.checkpoint(name, 6)

    # A rank dies, and torchrun starts both again. Then one gets a signal: started again, they leave again.
    options = command.index("--standalone")
    process = start([*command[:options], "--max-restarts=2", *command[options:]])
    wait_for(bench.checkpoint(name, 7), process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    wait_for(bench.checkpoint(name, 9), process)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    assert process.wait(LIMIT_S) != 0
    assert_preempted(bench, name, signal.SIGUSR1, 9)

    # torchrun dies: its ranks save and end by themselves, and the next launch waits until they have.
    process = start(command)
    wait_for(bench.checkpoint(name, 11), process)
    process.kill()
    process.wait()
    succeeded(run(command))
    assert not (bench.folder / name / "preempted").exists()
    whole = bench.uninterrupted(2)
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(whole))
    after_step_5 = [
        without_times(bench.records(each))[-4:] for each in (name, whole)
    ]  # the first launch's differ
    assert after_step_5[0] == after_step_5[1]


def test_killed_at_once_with_all_its_processes_a_run_goes_on(bench: Bench, name: str):
    command = bench.train_command(name, "checkpoint.every_steps=2")
    process = start(command, Path("/dev/full"))  # that its output can't be written is no matter
    wait_for(bench.checkpoint(name, 8), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not bench.checkpoint(name).exists()
    assert f"resuming '{name}' after step" in succeeded(run(command))
    bench.assert_ended_as(bench.uninterrupted(1), name)


def test_a_pause_does_not_end_the_run_and_a_rank_that_hangs_does_and_its_peers_show_where_they_wait(
    bench: Bench, name: str
):
    short = ("training.hang_timeout_minutes=0.1", "evaluation.timeout_minutes=0.2", "evaluation.every=2")
    output = bench.folder / "hanging.txt"
    process = start(bench.train_command(name, *short, *SAVING, ranks=2), output)
    wait_for(bench.checkpoint(name, 1), process)
    for number, seconds in ((signal.SIGSTOP, 12), (signal.SIGCONT, 0)):
        for rank in ranks_of(process):
            os.kill(rank, number)
        time.sleep(seconds)
    saved = len(saved_steps(bench.folder / name / "checkpoints"))
    wait_for(bench.checkpoint(name, saved + 2), process)

    peer, hanging = ranks_of(process)
    os.kill(hanging, signal.SIGSTOP)  # it neither runs nor ends
    deadline = time.monotonic() + LIMIT_S
    while Path(f"/proc/{peer}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(hanging, signal.SIGKILL)  # as torchrun would 30 s later
    assert process.wait(LIMIT_S) != 0
    told = output.read_text()
    assert "Timeout (0:00:06)!" in told
    assert "take_step" in told


def test_a_bit_that_flips_on_one_rank_ends_the_run_before_it_is_saved(bench: Bench, name: str):
    command = bench.train_command(name, *SAVING, "training.compare_replicas_every=2", ranks=2)
    script = command.index(str(ROOT / "train.py"))
    command[script : script + 1] = ["-m", "tests.flipped_bit"]
    result = run(command)
    assert result.returncode == 1
    told = r"error: the replicas are out of sync: \S+\.weight \(momentum\) of rank 1 differs from rank 0's"
    assert len(re.findall(told, result.stderr)) == 2  # both ranks say it
    assert bench.checkpoint(name, 1).exists()
    assert not bench.checkpoint(name, 2).exists()


def test_three_ranks_resume_exactly_where_told_to_be_deterministic(bench: Bench, name: str):
    steady = ("data.batch_size=2", "runtime.deterministic=true", "schedule.max_steps=3", *SAVING)
    succeeded(bench.train(name, *steady, ranks=3))
    whole = state_hash(bench.checkpoint(name, 3))
    for step in (2, 3):
        bench.checkpoint(name, step).unlink()
    succeeded(bench.train(name, *steady, ranks=3))
    assert state_hash(bench.checkpoint(name, 3)) == whole


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
        digests = [hashlib.sha256(part.contiguous().numpy().tobytes()).hexdigest() for part in joined]
        return [image["image_id"] for image in loaders[0].contents(step)], digests

    steps = len(index) // 12
    assert steps >= 4
    one = [fed(1, step) for step in range(steps)]
    assert [fed(world_size, step) for step, world_size in enumerate((2, 1, 3, 2))] == one[:4]
    seen = [image for ids, _ in one for image in ids]
    assert len(seen) == len(set(seen)) == 12 * steps
