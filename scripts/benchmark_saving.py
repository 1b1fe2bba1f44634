"""Measure what saving beside training costs: python scripts/benchmark_saving.py data.path=….

In one process, rounds of N steps that begin with a checkpoint, which is written in the background, take turns
with rounds of N steps without; which comes first changes from pair to pair. Printed are the median and the
quartiles of the ratios within pairs, and how long training stood still for the copy. It takes the keys of
train.py and +benchmark.pairs= (10), +benchmark.steps= (20).
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from data.task import open_training
from ssd.compose import parse, register
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.training.network import blank_network
from ssd.training.session import open_session
from ssd.training.trainer import Trainer

register("train_schema", TrainConfig)


@dataclass
class Pairs:
    """How much is measured."""

    pairs: int = 10
    steps: int = 20
    warmup: int = 3


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Compose, set up, measure, print."""
    with open_dict(composed):
        given = composed.pop("benchmark", {})
    pairs = OmegaConf.to_object(OmegaConf.merge(Pairs, given))
    assert isinstance(pairs, Pairs)
    try:
        config = parse(TrainConfig, composed)
        with open_session(config, Path(HydraConfig.get().runtime.output_dir)) as session:
            task, summary = open_training(config, None, session)
            network = blank_network(config.model, task.categories.num_classes, config.seed)
            figures = measure(Trainer(config, network, task, session), pairs)
            session.console.table("saving beside training", summary | figures)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def measure(trainer: Trainer, pairs: Pairs) -> dict[str, str]:
    """Run the rounds in turns; return the figures by name."""
    trainer.network.train()
    batches = trainer.task.loader.batches(0)
    trainer.console.start(0, trainer.last_step)
    copies: list[float] = []

    def steps(count: int) -> None:
        for _ in range(count):
            trainer.take_step(batches)
        trainer.guard.read()  # waits for the device

    def steps_beside_a_save() -> None:
        start = time.perf_counter()
        trainer.save(None)
        copies.append(time.perf_counter() - start)
        steps(pairs.steps)

    steps(pairs.warmup)
    ratios, plain = [], []
    for pair in range(pairs.pairs):
        works: list[Callable[[], None]] = [lambda: steps(pairs.steps), steps_beside_a_save]
        order = works if pair % 2 == 0 else works[::-1]
        seconds = {}
        for work in order:
            start = time.perf_counter()
            work()
            seconds[work] = time.perf_counter() - start
            trainer.saver.wait()
        ratios.append(seconds[works[1]] / seconds[works[0]])
        plain.append(seconds[works[0]] / pairs.steps)
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "time with saving / without": f"median {median:.3f}, quartiles {low:.3f} and {high:.3f}, "
        f"{pairs.pairs} pairs of {pairs.steps} steps, from {min(ratios):.3f} to {max(ratios):.3f}",
        "seconds a step without": f"{statistics.median(plain):.3f}",
        "seconds of copying a save": f"{statistics.median(copies):.3f}",
    }


if __name__ == "__main__":
    main()
