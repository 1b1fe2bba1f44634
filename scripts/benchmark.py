"""Measure training here: python scripts/benchmark.py data.path=… and any key that train.py takes.

benchmark.of=step    the trainer's own step, loading and checks included, against a bare one: forward, loss,
                     backward and optimizer on one batch that is already loaded.
benchmark.of=saving  steps beside a checkpoint, which is written in the background, against steps without.

Both sides take turns in one process, so that a noisy machine hits both. Printed are medians over the rounds
and the spread of the ratios within them; benchmark.out=FILE writes them as json.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.core.hydra_config import HydraConfig

from data.build import open_training
from ssd.batches import TrainBatch
from ssd.cli import check_file, run
from ssd.config import TrainConfig, require
from ssd.evaluation.evaluator import write_report
from ssd.training.session import open_session
from ssd.training.state import blank_network
from ssd.training.trainer import Trainer

READ_AHEAD = 2  # batches that DALI's pipeline has ready, its default

Figures = dict[str, float]
Work = Callable[[int], None]  # does that many steps


class Subject(Enum):
    """What is measured."""

    step = "step"
    saving = "saving"


@dataclass
class Measurement:
    """What to measure and how long: rounds of both sides, steps of each a round, steps before the first."""

    of: Subject = Subject.step
    rounds: int = 10
    steps: int = 4
    warmup: int = 3
    out: str | None = None

    def __post_init__(self) -> None:
        require(self.rounds >= 2, "benchmark.rounds", self.rounds, "a spread needs 2 rounds or more")
        require(self.steps >= 1, "benchmark.steps", self.steps, "give at least 1 step a round")
        require(self.warmup >= 1, "benchmark.warmup", self.warmup, "give at least 1 step before the rounds")


@dataclass
class BenchmarkConfig(TrainConfig):
    """A training and what to measure of it."""

    benchmark: Measurement = field(default_factory=Measurement)


def main(config: BenchmarkConfig) -> None:
    """Set up, measure, print."""
    plan = config.benchmark
    folder = Path(HydraConfig.get().runtime.output_dir)
    # Beside a run of that name, not in it: on its disk, but no run resumes from these checkpoints.
    with (
        TemporaryDirectory(prefix="benchmark-", dir=folder.parent) as temporary,
        open_session(config, Path(temporary)) as session,
    ):
        out = plan.out if session.ranks.is_main else None
        if out is not None:
            check_file(out, "benchmark.out")
        task, rows = open_training(config, None, session)
        network = blank_network(config.model, task.categories.num_classes, config.seed)
        trainer = Trainer(config, network, task, session)
        trainer.network.train()
        trainer.console.start(0, trainer.last_step)
        batches = trainer.task.loader.batches(0)
        measure = measure_step if plan.of is Subject.step else measure_saving
        figures = {name: round(value, 4) for name, value in measure(trainer, batches, plan).items()}
        shown = {name: str(value) for name, value in figures.items()}
        session.console.table(f"benchmark of {plan.of.value}", rows | shown)
        if out is not None:
            write_report(out, "benchmark.out", figures)


def measure_step(trainer: Trainer, batches: Iterator[TrainBatch], plan: Measurement) -> Figures:
    """Return seconds of the trainer's step and of a bare one, and how fast the loader is alone."""
    batch, step = next(batches), trainer.train_step

    def take_bare_step() -> None:
        with step.runtime.autocast():
            offsets, logits = step.model(step.runtime.arrange(batch.images))
        loss = step.loss(offsets, logits, batch.target_offsets, batch.labels)
        step.scaler.scale(loss).backward()
        step.scaler.step(step.optimizer)
        step.scaler.update()
        step.optimizer.zero_grad()

    ours, bare, load = (
        repeated(work) for work in (lambda: trainer.take_step(batches), take_bare_step, lambda: next(batches))
    )
    ours(plan.warmup)
    bare(plan.warmup)
    ours_s, bare_s = in_turns(trainer, plan, ours, bare)
    load(READ_AHEAD)  # what lies ready after the steps would count as loaded in no time
    (load_s,) = in_turns(trainer, plan, load)
    return {
        "seconds a step of the trainer": statistics.median(ours_s),
        "seconds a bare step": statistics.median(bare_s),
        **spread("share of a step outside", [1 - b / a for a, b in zip(ours_s, bare_s, strict=True)]),
        "images a second": trainer.global_batch / statistics.median(ours_s),
        "images a second of the loader alone": trainer.global_batch / statistics.median(load_s),
    }


def measure_saving(trainer: Trainer, batches: Iterator[TrainBatch], plan: Measurement) -> Figures:
    """Return how much longer steps take while a checkpoint is written, and how long its copy takes."""
    plain = repeated(lambda: trainer.take_step(batches))
    copies_s: list[float] = []

    def beside_a_save(steps: int) -> None:
        start = time.perf_counter()
        trainer.save()
        copies_s.append(time.perf_counter() - start)
        plain(steps)

    plain(plan.warmup)
    beside_s, plain_s = in_turns(trainer, plan, beside_a_save, plain)
    return {
        "seconds a step without saving": statistics.median(plain_s),
        **spread("time beside a save / without", [a / b for a, b in zip(beside_s, plain_s, strict=True)]),
        "seconds of the copy": statistics.median(copies_s),
    }


def repeated(work: Callable[[], object]) -> Work:
    """Return what does some work a number of times."""

    def times(count: int) -> None:
        for _ in range(count):
            work()

    return times


def in_turns(trainer: Trainer, plan: Measurement, *works: Work) -> list[list[float]]:
    """Do each work in each round, in turning order; return seconds a step, by work and round."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(plan.rounds):
        sides = list(zip(works, seconds, strict=True))
        for work, taken in sides if turn % 2 == 0 else reversed(sides):
            trainer.saver.wait()  # for what the side before has begun
            trainer.guard.read()  # reading a value off the device waits for all that was queued
            start = time.perf_counter()
            work(plan.steps)
            trainer.guard.read()
            taken.append((time.perf_counter() - start) / plan.steps)
    return seconds


def spread(name: str, values: list[float]) -> Figures:
    """Return median, quartiles and extremes under names of their own."""
    low, median, high = statistics.quantiles(values, n=4)
    extremes = {f"{name}, lowest": min(values), f"{name}, highest": max(values)}
    return {name: median, f"{name}, lower quartile": low, f"{name}, upper quartile": high, **extremes}


if __name__ == "__main__":
    run(main, BenchmarkConfig, Path(__file__).parent.parent / "conf", "train")
