"""Kill and preempt real training runs at random moments, and check that they end as if nothing had happened.

python scripts/chaos.py --kills 100 --terminations 40: runs on the embedded set under torchrun are hit by
SIGKILL (one rank, torchrun only, or all of them) and by the signals that ask a run to stop (one rank or
torchrun), at random moments that include start-up, evaluations and saves, and started again until they end.
Every run must end with an untouched run's weights, momenta and metrics; after a stop signal the newest
checkpoint must be from the step that the run had reached. In every second run three steps are not finite and
are rolled back.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from data.demo import generate
from ssd.checkpoint import CheckpointError, learned, load_run, saved_steps
from ssd.training.signals import PREEMPTED_FILE, SIGNALS

ROOT = Path(__file__).parent.parent
TIMES = ("images_per_second", "data_wait")
POISONED, POISON_PX = "poisoned.json", 1e-6
POISONED_IMAGES = (26, 30)  # they come in steps 5, 7 and 12; checkpoints are due after 4, 8 and 12
ROLLBACK = (
    *("data.train_annotations=${data.path}/" + POISONED, f"data.min_box_px={POISON_PX / 10}"),
    *("training.on_nonfinite=rollback", "logging.every_steps=7"),
    *("checkpoint.every_steps=null", "checkpoint.keep=1"),
)
Hit = tuple[signal.Signals, str]
Outcome = tuple[dict[str, str], list[dict[str, Any]]]  # weights and momenta, metrics without times


def main() -> None:
    """Hit runs until all hits are used up; print the results; exit with 1 if any run ended differently."""
    parser = argparse.ArgumentParser(description="Hit real training runs with signals at random moments.")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs to send")
    parser.add_argument("--terminations", type=int, default=40, help="stop signals to send")
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2, 3, 4, 6), help="ranks of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and targets")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    folder = Path(mkdtemp(prefix="chaos-"))
    generate(folder / "demo", 60, 5)
    poison(folder / "demo")
    plain = command(folder / "demo", options.ranks)
    kinds = plain, [*plain, *ROLLBACK]
    untouched = [leave_alone(folder / f"untouched_{kind}", kinds[kind]) for kind in (0, 1)]
    kills = [(signal.SIGKILL, chance.choice(["all", "torchrun", "one rank"])) for _ in range(options.kills)]
    ends = [
        (chance.choice(SIGNALS), chance.choice(["torchrun", "one rank"])) for _ in range(options.terminations)
    ]
    hits = chance.sample(kills + ends, len(kills + ends))
    runs = failed = 0
    while hits:
        run, (lifetime, expected) = folder / f"run_{runs}", untouched[runs % 2]
        failures = torment(run, kinds[runs % 2], hits, chance, lifetime)
        try:
            if outcome(run) != expected:
                failures.append("different weights, momenta or metrics")
        except (CheckpointError, OSError, IndexError) as error:
            failures.append(f"no outcome: {error!r}")
        runs += 1
        failed += bool(failures)
        print(f"{run.name}: {failures or 'ended as expected'}; {failed} of {runs} failed", flush=True)
        if not failures:  # each holds four checkpoints
            shutil.rmtree(run)
            run.with_suffix(".log").unlink()
    if failed:
        raise SystemExit(f"error: failed runs are kept in {folder}")
    shutil.rmtree(folder)


def leave_alone(run: Path, arguments: list[str]) -> tuple[float, Outcome]:
    """Let a run finish; return the seconds it took and its outcome."""
    started = time.monotonic()
    status = start(run, arguments).wait()
    lifetime = time.monotonic() - started
    rolled_back = "weights and momenta are those after step" in run.with_suffix(".log").read_text()
    if status != 0 or rolled_back != (ROLLBACK[0] in arguments):
        raise SystemExit(f"error: untouched run: status {status}, rolled back: {rolled_back}; see {run}.log")
    print(f"{run}, untouched: {lifetime:.0f} s", flush=True)
    return lifetime, outcome(run)


def command(demo: Path, ranks: int) -> list[str]:
    """Return the command that trains on the embedded set for 15 steps."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1"),
        f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
        *(f"--nproc_per_node={ranks}", str(ROOT / "train.py"), "experiment=demo", "name=chaos"),
        *(f"data.path={demo}", f"data.batch_size={12 // ranks}", "data.threads=1", "schedule.epochs=3"),
        *("schedule.milestones=[2]", "schedule.warmup_steps=2", "logging.every_steps=3"),
        *("evaluation.every=1", "evaluation.pictures=1", "checkpoint.every_steps=2", "checkpoint.keep=2"),
        f"runtime.deterministic={str(ranks > 2).lower()}",
    ]


def poison(demo: Path) -> None:
    """Write annotations with some boxes whose sides vanish in float32, which makes their losses infinite."""
    content = json.loads((demo / "annotations" / "instances_train2017.json").read_text())
    for annotation in content["annotations"]:
        if annotation["image_id"] in POISONED_IMAGES:
            annotation["bbox"][2:] = [POISON_PX, POISON_PX]
    (demo / POISONED).write_text(json.dumps(content))


def start(run: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a run in its folder, or resume it."""
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*arguments, f"hydra.run.dir={run}"],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )


def outcome(run: Path) -> Outcome:
    """Return what a finished run has learned and recorded."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    return learned(saved_steps(run / "checkpoints")[-1]), records


def torment(
    run: Path, arguments: list[str], hits: list[Hit], chance: random.Random, lifetime: float
) -> list[str]:
    """Start a run and hit it, one to four times while hits are left; then let it finish.

    Returns what went wrong: the newest checkpoint of a preempted run is from another step, or the run failed.
    """
    failures = []
    for _ in range(min(chance.randint(1, 4), len(hits))):
        process = start(run, arguments)
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, lifetime))
            break  # it ended first
        number, target = hits.pop()
        print(f"{run.name}: {number.name} to {target}", flush=True)
        hit(process, number, target, chance)
        process.wait()
        preempted = run / PREEMPTED_FILE
        step = json.loads(preempted.read_text())["step"] if preempted.exists() else None
        if step is not None:  # training had begun
            saved = saved_steps(run / "checkpoints")
            newest = load_run(saved[-1])["step"] if saved else 0
            if newest != step:
                failures.append(f"preempted at step {step}, but the newest checkpoint is from step {newest}")
    status = start(run, arguments).wait()
    if status != 0:
        failures.append(f"ended with status {status}: see {run}.log")
    return failures


def hit(process: subprocess.Popen[bytes], number: signal.Signals, target: str, chance: random.Random) -> None:
    """Send a signal to torchrun, to one of its ranks (to torchrun if it has none yet), or to all of them."""
    try:  # torchrun starts each rank in a new session
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    ranks = [int(pid) for pid in children]
    targets = {"torchrun": [process.pid], "one rank": [chance.choice(ranks or [process.pid])]}
    with suppress(ProcessLookupError):  # it has ended meanwhile
        for pid in targets.get(target, [process.pid, *ranks]):
            os.kill(pid, number)


if __name__ == "__main__":
    main()
