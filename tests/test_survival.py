"""Whole runs that are asked to end, killed or hung. At random: scripts/chaos.py."""

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ssd.checkpoint import learned, load_run, saved_steps
from tests.bench import LIMIT_S, ROOT, Bench, run, start, succeeded, wait_for, without_times
from tests.data.coco_folder import cut_short

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
    assert learned(bench.checkpoint(name)) == learned(bench.checkpoint(whole))
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


def test_three_ranks_resume_exactly_where_told_to_be_deterministic(bench: Bench, name: str):
    steady = ("data.batch_size=2", "runtime.deterministic=true", "schedule.max_steps=3", *SAVING)
    succeeded(bench.train(name, *steady, ranks=3))
    whole = learned(bench.checkpoint(name, 3))
    for step in (2, 3):
        bench.checkpoint(name, step).unlink()
    succeeded(bench.train(name, *steady, ranks=3))
    assert learned(bench.checkpoint(name, 3)) == whole
