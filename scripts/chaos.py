"""Kill and preempt real training runs at random moments, and see whether they end as if nothing had happened.

python scripts/chaos.py --kills 100 --terminations 40: runs of the embedded set under torchrun are hit by
SIGKILL (one rank, torchrun alone, or all of them) and by the signals that ask a run to end (one rank or
torchrun), each at a random moment of its life, start-up, evaluations and saves included, and started again
until they end. Every run must end with the weights, momenta and metrics of the run that nobody touched; after
a signal to end the newest checkpoint must be of the very step that the run had come to.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from data.demo import generate
from ssd.checkpoint import CheckpointError, load_run, saved_steps
from ssd.training.signals import SIGNALS

ROOT = Path(__file__).parent.parent
TIMES = ("images_per_second", "data_wait")
GONE_WITHIN_S = 60.0


@dataclass
class Tally:
    """What was done and what came of it."""

    hits: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    preempted: int = 0
    restarted_by_torchrun: int = 0
    failures: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        """Count one hit."""
        self.hits[kind] = self.hits.get(kind, 0) + 1


@dataclass(frozen=True)
class Arena:
    """Where the runs are made, with how many ranks each."""

    folder: Path
    ranks: int

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a run, or go on with it."""
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"),
            f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
            *(f"--nproc_per_node={self.ranks}", str(ROOT / "train.py"), "experiment=demo", f"name={name}"),
            *(f"hydra.run.dir={self.folder / name}", f"data.path={self.folder / 'demo'}"),
            *(f"data.batch_size={12 // self.ranks}", "data.threads=1", "schedule.epochs=3"),
            *("schedule.milestones=[2]", "schedule.warmup_steps=2", "logging.every_steps=3"),
            *("evaluation.every=1", "evaluation.pictures=1", "checkpoint.every_steps=2", "checkpoint.keep=2"),
            f"runtime.deterministic={str(self.ranks > 2).lower()}",
        ]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def outcome(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        """Return the hash of weights and momenta at the end, and the metrics but for times."""
        saved = load_run(saved_steps(self.folder / name / "checkpoints")[-1])
        momenta = [entry["momentum_buffer"] for entry in saved["optimizer"]["state"].values()]
        digest = hashlib.sha256()
        for tensor in (*saved["model"].values(), *momenta):
            digest.update(tensor.contiguous().numpy().tobytes())
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        records = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
        return digest.hexdigest(), records

    def remove(self, name: str) -> None:
        """Remove a run and what it printed."""
        shutil.rmtree(self.folder / name)
        (self.folder / f"{name}.log").unlink()


def main() -> None:
    """Hit runs until enough hits were made; print what came of it; exit with 1 if any run ended otherwise."""
    options = parse_options()
    chance = random.Random(options.seed)
    tally = Tally()
    arena = Arena(Path(mkdtemp(prefix="chaos-")), options.ranks)
    generate(arena.folder / "demo", 60, 5)
    started = time.monotonic()
    if arena.start("untouched").wait() != 0:
        raise SystemExit("error: the run that nobody touched failed: " + log_tail(arena, "untouched"))
    lifetime = time.monotonic() - started
    expected = arena.outcome("untouched")
    print(
        f"in {arena.folder}; untouched: {lifetime:.0f} s, weights and momenta {expected[0][:16]}", flush=True
    )
    left = ["kill"] * options.kills + ["terminate"] * options.terminations
    chance.shuffle(left)
    while left:
        name = f"run_{tally.runs}"
        failures_before = len(tally.failures)
        torment(arena, name, left, chance, lifetime, tally)
        tally.runs += 1
        tally.failures += departures(arena, name, expected)
        good = len(tally.failures) == failures_before
        if good:
            arena.remove(name)  # four checkpoints each
        print(f"{name}: {'ended as expected' if good else tally.failures[-1]}; {tally.hits}", flush=True)
    print(json.dumps({"ranks": options.ranks, **vars(tally)}, indent=2))
    if tally.failures:
        raise SystemExit(f"error: what failed is kept in {arena.folder}")
    shutil.rmtree(arena.folder)


def departures(arena: Arena, name: str, expected: tuple[str, list[dict[str, Any]]]) -> list[str]:
    """Return what a run's end has unlike the expected outcome."""
    try:
        weights, metrics = arena.outcome(name)
    except (CheckpointError, OSError, IndexError) as error:
        return [f"{name} left no outcome: {error!r}"]
    unlike = [
        *(["weights or momenta"] if weights != expected[0] else []),
        *(["metrics"] if metrics != expected[1] else []),
    ]
    return [f"{name} ended with other {' and '.join(unlike)}"] if unlike else []


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=count, default=100, help="SIGKILLs to send")
    parser.add_argument("--terminations", type=count, default=40, help="signals to end to send")
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2, 3, 4, 6), help="ranks of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the targets")
    return parser.parse_args()


def count(text: str) -> int:
    """Read a number of things on the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 0 on")
    return int(text)


def torment(
    arena: Arena, name: str, left: list[str], chance: random.Random, lifetime: float, tally: Tally
) -> None:
    """Start a run and hit it, again and again while hits are left, at most four times; let it end then."""
    for _ in range(chance.randint(1, 4)):
        if not left:
            break
        process = arena.start(name)
        if ends_within(process, chance.uniform(0, lifetime)):
            break  # it was quicker
        hit(process, left.pop(), chance, tally)
        if ends_within(process, GONE_WITHIN_S) and process.returncode == 0:
            tally.restarted_by_torchrun += 1
        wait_until_all_are_gone(process)
        check_preempted(arena, name, tally)
    status = arena.start(name).wait()
    if status != 0:
        tally.failures.append(f"{name} ended with status {status}: {log_tail(arena, name)}")


def hit(process: subprocess.Popen[bytes], kind: str, chance: random.Random, tally: Tally) -> None:
    """Send one signal to a target of the kind."""
    workers = children(process.pid)
    if kind == "kill":
        number = signal.SIGKILL
        target = chance.choice(["all", "torchrun", "one rank"])
    else:
        number = chance.choice(SIGNALS)
        target = chance.choice(["torchrun", "one rank"])
    if target == "one rank" and not workers:
        target = "torchrun"  # it has not started any yet
    tally.count(f"{number.name} to {target}")
    try:
        if target == "all":
            os.killpg(process.pid, number)
            for worker in workers:  # torchrun puts them into sessions of their own
                os.kill(worker, number)
        else:
            os.kill(process.pid if target == "torchrun" else chance.choice(workers), number)
    except ProcessLookupError:
        pass  # it ended in the meantime


def check_preempted(arena: Arena, name: str, tally: Tally) -> None:
    """Where the run says that it was preempted, its newest checkpoint must be of that step."""
    path = arena.folder / name / "preempted"
    if not path.exists():
        return
    step = json.loads(path.read_text())["step"]
    if step is None:
        return  # it had not begun to train
    tally.preempted += 1
    steps = saved_steps(arena.folder / name / "checkpoints")
    newest = load_run(steps[-1])["step"] if steps else 0
    if newest != step:
        tally.failures.append(f"{name} was preempted at step {step}, its newest checkpoint is of {newest}")


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait so long for a process; tell whether it ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until_all_are_gone(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a run that ends too slowly, and say so."""
    if process.poll() is None:
        print(f"torchrun {process.pid} still runs {GONE_WITHIN_S:.0f} s after a signal; killed", flush=True)
        for worker in children(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()


def children(process: int) -> list[int]:
    """List the processes that a process has started (Linux)."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def log_tail(arena: Arena, name: str) -> str:
    """Return the end of what a run printed."""
    return (arena.folder / f"{name}.log").read_text(errors="replace")[-2000:]


if __name__ == "__main__":
    main()
