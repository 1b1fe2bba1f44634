"""Kill and preempt real training runs at random moments, and see whether they end as if nothing had happened.

python scripts/chaos.py --kills 100 --terminations 40: runs of the embedded set under torchrun are hit by
SIGKILL (one rank, torchrun alone, or all of them) and by the signals that ask a run to end (one rank or
torchrun), each at a random moment of its life, start-up, evaluations and saves included, and started again
until they end. Every run must end with the weights, momenta and metrics of the run that nobody touched; after
a signal to end the newest checkpoint must be of the very step that the run had come to. In every second run
three steps are not finite, and rolled back.
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
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from data.demo import generate
from ssd.checkpoint import CheckpointError, load_run, saved_steps
from ssd.training.signals import PREEMPTED_FILE, SIGNALS

ROOT = Path(__file__).parent.parent
TIMES = ("images_per_second", "data_wait")
GONE_WITHIN_S = 60.0
REFERENCES = ("plain", "rollback")
POISONED, POISON_PX = "poisoned.json", 1e-6
POISONED_IMAGES = (26, 30)  # their turns come in steps 5, 7 and 12; checkpoints are due after 4, 8 and 12


@dataclass(frozen=True)
class Run:
    """A run's folder, beside the data set, how many ranks it has, and whether it rolls back."""

    folder: Path
    ranks: int
    rolls_back: bool

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, or go on with it."""
        demo = self.folder.parent / "demo"
        rollback = (
            *(f"data.train_annotations={demo / POISONED}", f"data.min_box_px={POISON_PX / 10}"),
            *("training.on_nonfinite=rollback", "logging.every_steps=7"),
            *("checkpoint.every_steps=null", "checkpoint.keep=1"),
        )
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"),
            f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
            *(f"--nproc_per_node={self.ranks}", str(ROOT / "train.py"), "experiment=demo", "name=chaos"),
            *(f"hydra.run.dir={self.folder}", f"data.path={demo}"),
            *(f"data.batch_size={12 // self.ranks}", "data.threads=1", "schedule.epochs=3"),
            *("schedule.milestones=[2]", "schedule.warmup_steps=2", "logging.every_steps=3"),
            *("evaluation.every=1", "evaluation.pictures=1", "checkpoint.every_steps=2", "checkpoint.keep=2"),
            f"runtime.deterministic={str(self.ranks > 2).lower()}",
            *(rollback if self.rolls_back else ()),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def outcome(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the hash of weights and momenta at the end, and the metrics but for times."""
        saved = load_run(saved_steps(self.folder / "checkpoints")[-1])
        momenta = [entry["momentum_buffer"] for entry in saved["optimizer"]["state"].values()]
        digest = hashlib.sha256()
        for tensor in (*saved["model"].values(), *momenta):
            digest.update(tensor.contiguous().numpy().tobytes())
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        records = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
        return digest.hexdigest(), records


def main() -> None:
    """Hit runs until enough hits were made; print what came of it; exit with 1 if any run ended otherwise."""
    parser = argparse.ArgumentParser(description="Hit real training runs by signals at random moments.")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs to send")
    parser.add_argument("--terminations", type=int, default=40, help="signals to end to send")
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2, 3, 4, 6), help="ranks of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the targets")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    folder = Path(mkdtemp(prefix="chaos-"))
    generate(folder / "demo", 60, 5)
    poison(folder / "demo")
    references = [untouched(Run(folder / name, options.ranks, name == "rollback")) for name in REFERENCES]
    lifetime = references[-1][0]
    left = ["kill"] * options.kills + ["terminate"] * options.terminations
    chance.shuffle(left)
    tally: Counter[str] = Counter()
    while left:
        run = Run(folder / f"run_{tally['runs']}", options.ranks, rolls_back=tally["runs"] % 2 == 1)
        failures = torment(run, left, chance, lifetime, tally)
        try:
            if run.outcome() != references[run.rolls_back][1]:
                failures.append("other weights, momenta or metrics")
        except (CheckpointError, OSError, IndexError) as error:
            failures.append(f"no outcome: {error!r}")
        tally["runs"] += 1
        tally["failed runs"] += bool(failures)
        print(f"{run.folder.name}: {failures or 'ended as expected'}; {dict(tally)}", flush=True)
        if not failures:  # four checkpoints each
            shutil.rmtree(run.folder)
            run.folder.with_suffix(".log").unlink()
    if tally["failed runs"]:
        raise SystemExit(f"error: what failed is kept in {folder}")
    shutil.rmtree(folder)


def untouched(run: Run) -> tuple[float, tuple[str, list[dict[str, Any]]]]:
    """Let a run come to its end; return how long it took and its outcome."""
    started = time.monotonic()
    status = run.start().wait()
    lifetime = time.monotonic() - started
    rolled_back = "weights and momenta are those after step" in run.folder.with_suffix(".log").read_text()
    if status != 0 or rolled_back != run.rolls_back:
        raise SystemExit(f"error: status {status} or no rollback of the run left alone: see {run.folder}.log")
    outcome = run.outcome()
    print(f"{run.folder}, left alone: {lifetime:.0f} s, {outcome[0][:16]}", flush=True)
    return lifetime, outcome


def poison(demo: Path) -> None:
    """Write annotations in which some boxes' sides vanish in float32, which makes their losses infinite."""
    content = json.loads((demo / "annotations" / "instances_train2017.json").read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] in POISONED_IMAGES:
            annotation["bbox"][2:] = [POISON_PX, POISON_PX]
    (demo / POISONED).write_text(json.dumps(content))


def torment(
    run: Run, left: list[str], chance: random.Random, lifetime: float, tally: Counter[str]
) -> list[str]:
    """Start a run and hit it, again and again while hits are left, at most four times; then let it end.

    Returns what went wrong: a preempted run whose newest checkpoint is not of its step, an end with an error.
    """
    failures = []
    for _ in range(min(chance.randint(1, 4), len(left))):
        process = run.start()
        if ends_within(process, chance.uniform(0, lifetime)):
            break  # it was quicker
        tally[hit(process, left.pop(), chance)] += 1
        if not ends_within(process, GONE_WITHIN_S):
            print(f"torchrun {process.pid} runs {GONE_WITHIN_S:.0f} s after a signal; killed", flush=True)
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()
        tally["restarted by torchrun"] += process.returncode == 0
        preempted = run.folder / PREEMPTED_FILE
        step = json.loads(preempted.read_text())["step"] if preempted.exists() else None
        if step is not None:  # it had begun to train
            tally["preempted"] += 1
            saved = saved_steps(run.folder / "checkpoints")
            newest = load_run(saved[-1])["step"] if saved else 0
            if newest != step:
                failures.append(f"preempted at step {step}, its newest checkpoint is of {newest}")
    status = run.start().wait()
    if status != 0:
        failures.append(f"ended with status {status}: see {run.folder}.log")
    return failures


def hit(process: subprocess.Popen[bytes], kind: str, chance: random.Random) -> str:
    """Send one signal to a target of the kind; name both."""
    workers = children(process.pid)
    number = signal.SIGKILL if kind == "kill" else chance.choice(SIGNALS)
    target = chance.choice(["all", "torchrun", "one rank"] if kind == "kill" else ["torchrun", "one rank"])
    if target == "one rank" and not workers:
        target = "torchrun"  # it has not started any yet
    # torchrun puts its workers into sessions of their own.
    one = [chance.choice(workers)] if target == "one rank" else [process.pid]
    with suppress(ProcessLookupError):  # it ended in the meantime
        for pid in [process.pid, *workers] if target == "all" else one:
            os.kill(pid, number)
    return f"{number.name} to {target}"


def ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait so long for a process; tell whether it ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


def children(process: int) -> list[int]:
    """List the processes that a process has started (Linux)."""
    try:
        return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    main()
