"""Measure training here: python scripts/benchmark.py data.path=… and any key that train.py takes.

Two loops take turns in one process, so that a noisy machine hits both: the trainer's own (loading, learning
rate, forward, loss, backward, finiteness, optimizer step, losses counted) and a bare one (forward, loss,
backward, optimizer step of one batch already loaded). What the first takes longer is the share of a step that
is not training. Printed are medians over the rounds. +benchmark.rounds=, .steps= and .warmup= set the counts,
+benchmark.out=FILE writes json.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from data.task import open_training
from ssd.batches import TrainBatch
from ssd.compose import parse, register
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.evaluation.report import write_report
from ssd.training.network import blank_network
from ssd.training.session import open_session
from ssd.training.trainer import Trainer

register("train_schema", TrainConfig)


@dataclass
class Rounds:
    """How long to measure: rounds of each loop, steps a round, steps before the first."""

    rounds: int = 7
    steps: int = 4
    warmup: int = 3
    out: str | None = None


@dataclass(frozen=True)
class Figures:
    """Medians over rounds. Seconds are of one step; the share is of the trainer's step."""

    trainer_seconds: float
    bare_seconds: float
    share_outside: float
    share_outside_lowest: float
    share_outside_highest: float
    images_per_second: float
    loader_images_per_second: float


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Compose, set up, measure, print."""
    with open_dict(composed):
        given = composed.pop("benchmark", {})
    rounds = OmegaConf.to_object(OmegaConf.merge(Rounds, given))
    assert isinstance(rounds, Rounds)
    try:
        config = parse(TrainConfig, composed)
        with open_session(config, Path(HydraConfig.get().runtime.output_dir)) as session:
            task, summary = open_training(config, None, session)
            network = blank_network(config.model, task.categories.num_classes, config.seed)
            trainer = Trainer(config, network, task, session)
            figures = {name: round(value, 4) for name, value in asdict(measure(trainer, rounds)).items()}
            session.console.table(
                "benchmark", summary | {name: str(value) for name, value in figures.items()}
            )
            if rounds.out and session.ranks.is_main:
                write_report(Path(rounds.out), figures)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def measure(trainer: Trainer, rounds: Rounds) -> Figures:
    """Run the trainer's loop and the bare one in turns."""
    trainer.network.train()
    batches = trainer.task.loader.batches(0)
    trainer.console.start(0, trainer.last_step)
    wait = trainer.guard.read  # reading a value off the device waits for all that was queued

    def trainers_step() -> None:
        trainer.take_step(batches)

    bare_step = bare_loop(trainer, next(batches))
    for _ in range(rounds.warmup):
        trainers_step()
        bare_step()
    ours, bare = [], []
    for _ in range(rounds.rounds):
        ours.append(timed(trainers_step, rounds.steps, wait))
        bare.append(timed(bare_step, rounds.steps, wait))
    loading = statistics.median(
        timed(lambda: next(batches), rounds.steps, wait) for _ in range(rounds.rounds)
    )
    shares = [1 - b / a for a, b in zip(ours, bare, strict=True)]
    return Figures(
        trainer_seconds=statistics.median(ours),
        bare_seconds=statistics.median(bare),
        share_outside=statistics.median(shares),
        share_outside_lowest=min(shares),
        share_outside_highest=max(shares),
        images_per_second=trainer.global_batch / statistics.median(ours),
        loader_images_per_second=trainer.global_batch / loading,
    )


def bare_loop(trainer: Trainer, batch: TrainBatch) -> Callable[[], None]:
    """Return the least that a training step can be, on one batch."""
    step = trainer.train_step

    def bare_step() -> None:
        with step.runtime.autocast():
            offsets, logits = step.model(step.runtime.arrange(batch.images))
        loss = step.loss(offsets, logits, batch.target_offsets, batch.labels)
        step.scaler.scale(loss).backward()
        step.scaler.step(step.optimizer)
        step.scaler.update()
        step.optimizer.zero_grad()

    return bare_step


def timed(step: Callable[[], object], steps: int, wait: Callable[[], object]) -> float:
    """Return seconds a step."""
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
