"""Measure training here: python scripts/benchmark.py data.path=… and any key that train.py takes.

What is compared takes turns in one process, so that a noisy machine hits both sides:

benchmark.of=step    the trainer's own loop (loading, learning rate, forward, loss, backward, finiteness,
                     optimizer step, losses counted) against a bare one (forward, loss, backward, optimizer
                     step of one batch already loaded). What the first takes longer isn't training.
benchmark.of=saving  steps beside a checkpoint, which is written in the background, against steps without.

Printed are medians over the rounds and the spread of the ratios within them. benchmark.rounds=,
benchmark.steps= and benchmark.warmup= set the counts, benchmark.out=FILE writes json.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.core.hydra_config import HydraConfig

from data.build import open_training
from ssd.batches import TrainBatch
from ssd.cli import check_file, entry_point
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.evaluation.report import write_report
from ssd.training.network import blank_network
from ssd.training.session import open_session
from ssd.training.trainer import Trainer

READ_AHEAD = 2  # batches that DALI's pipeline has ready, its default

Figures = dict[str, float]
Work = Callable[[int], None]  # does so many steps


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
        if self.rounds < 2 or self.steps < 1 or self.warmup < 1:
            raise UserError(
                f"benchmark.rounds={self.rounds}, steps={self.steps}, warmup={self.warmup}: "
                "a spread needs 2 rounds or more, each of a step or more, after a step or more"
            )


@dataclass
class BenchmarkConfig(TrainConfig):
    """A training and what to measure of it."""

    benchmark: Measurement = field(default_factory=Measurement)


@entry_point(BenchmarkConfig, Path(__file__).parent.parent / "conf", "train")
def main(config: BenchmarkConfig) -> None:
    """Set up, measure, print."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    # Beside a run of that name, not in it: on its disk, but no run goes on from our checkpoints.
    with (
        TemporaryDirectory(prefix="benchmark-", dir=folder.parent) as temporary,
        open_session(config, Path(temporary)) as session,
    ):
        out = config.benchmark.out if session.ranks.is_main else None
        if out is not None:
            check_file(out, "benchmark.out")
        task, summary = open_training(config, None, session)
        network = blank_network(config.model, task.categories.num_classes, config.seed)
        measure = {Subject.step: measure_step, Subject.saving: measure_saving}[config.benchmark.of]
        figures = measure(Trainer(config, network, task, session), config.benchmark)
        rounded = {name: round(value, 4) for name, value in figures.items()}
        session.console.table(
            f"benchmark of {config.benchmark.of.value}",
            summary | {name: str(value) for name, value in rounded.items()},
        )
        if out is not None:
            write_report(out, "benchmark.out", rounded)


def measure_step(trainer: Trainer, plan: Measurement) -> Figures:
    """Return seconds of the trainer's step and of a bare one, and how fast the loader is alone."""
    batches = begin(trainer)
    trainers = repeated(partial(trainer.take_step, batches))
    bare = repeated(bare_step(trainer, next(batches)))
    trainers(plan.warmup)
    bare(plan.warmup)
    ours, bares = in_turns(trainer, plan, trainers, bare)
    load = repeated(partial(next, batches))
    load(READ_AHEAD)  # what lies ready after the steps would count as loaded in no time
    (loading,) = in_turns(trainer, plan, load)
    return {
        "seconds a step of the trainer": statistics.median(ours),
        "seconds a bare step": statistics.median(bares),
        **spread("share of a step outside", [1 - b / a for a, b in zip(ours, bares, strict=True)]),
        "images a second": trainer.global_batch / statistics.median(ours),
        "images a second of the loader alone": trainer.global_batch / statistics.median(loading),
    }


def measure_saving(trainer: Trainer, plan: Measurement) -> Figures:
    """Return how much longer steps take while a checkpoint is written, and how long its copy takes."""
    plain = repeated(partial(trainer.take_step, begin(trainer)))
    copies: list[float] = []

    def beside_a_save(steps: int) -> None:
        start = time.perf_counter()
        trainer.save(None)
        copies.append(time.perf_counter() - start)
        plain(steps)

    plain(plan.warmup)
    besides, plains = in_turns(trainer, plan, beside_a_save, plain)
    return {
        "seconds a step without saving": statistics.median(plains),
        **spread("time beside a save / without", [a / b for a, b in zip(besides, plains, strict=True)]),
        "seconds of the copy": statistics.median(copies),
    }


def begin(trainer: Trainer) -> Iterator[TrainBatch]:
    """Make ready to train as the trainer does; return its batches."""
    trainer.network.train()
    trainer.console.start(0, trainer.last_step)
    return trainer.task.loader.batches(0)


def bare_step(trainer: Trainer, batch: TrainBatch) -> Callable[[], None]:
    """Return the least that a training step can be, on one batch."""
    step = trainer.train_step

    def take() -> None:
        with step.runtime.autocast():
            offsets, logits = step.model(step.runtime.arrange(batch.images))
        loss = step.loss(offsets, logits, batch.target_offsets, batch.labels)
        step.scaler.scale(loss).backward()
        step.scaler.step(step.optimizer)
        step.scaler.update()
        step.optimizer.zero_grad()

    return take


def repeated(work: Callable[[], object]) -> Work:
    """Return what does some work so and so many times."""

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
    main()
