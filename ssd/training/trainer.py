"""The training loop: steps, and what is due after a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssd.batches import TrainBatch, TrainLoader
from ssd.categories import Categories
from ssd.checkpoint import FORMAT, copy, keep_newest, package_versions, step_file, write
from ssd.config import Precision, TrainConfig, as_plain, as_yaml
from ssd.console import RunConsole
from ssd.distributed import Ranks
from ssd.evaluation.evaluator import Evaluator
from ssd.evaluation.pictures import Example, example_pictures
from ssd.evaluation.report import summary_lines
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.runtime import Runtime
from ssd.training.batch_picture import batch_picture
from ssd.training.guard import FiniteGuard, NonFiniteError
from ssd.training.log import RunLog
from ssd.training.meter import LossMeter, Stopwatch
from ssd.training.optimizer import build_optimizer, build_schedule
from ssd.training.resume import TrainState
from ssd.training.step import TrainStep

# Far below what fp16 training needs; there only when gradients overflow step after step.
SMALLEST_LOSS_SCALE = 2.0**-10


@dataclass(frozen=True)
class Task:
    """What is learned: training input, how it is scored, which validation images are shown.

    fingerprint: of the cleaned training annotations.
    """

    loader: TrainLoader
    evaluator: Evaluator
    examples: list[Example]
    categories: Categories
    fingerprint: str


class Trainer:
    """Trains a network on a task until its last step, from any step on.

    `step` counts optimizer steps done; epoch and position in it follow from it. Everything that logging,
    evaluating and saving do leaves the trajectory as it is.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: SSD300,
        task: Task,
        runtime: Runtime,
        ranks: Ranks,
        console: RunConsole,
    ) -> None:
        self.config, self.task, self.runtime, self.ranks, self.console = config, task, runtime, ranks, console
        self.network = runtime.place(network)
        self.global_batch = config.data.batch_size * ranks.world_size
        self.schedule = build_schedule(config.optimizer, config.schedule, self.global_batch)
        self.guard = FiniteGuard(runtime.device)
        self.meter = LossMeter(runtime.device)
        self.stopwatch = Stopwatch()
        optimizer = build_optimizer(self.network, config.optimizer)
        scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision is Precision.fp16)
        self.state = TrainState(self.network, optimizer, scaler, self.meter, ranks)
        self.train_step = TrainStep(self._wrapped(), optimizer, scaler, self.guard, runtime, MultiBoxLoss())
        self.step = 0
        self.best: dict[str, Any] | None = None  # AP and step of the best evaluation so far

    @property
    def last_step(self) -> int:
        """Optimizer steps at which the run ends."""
        steps = self.config.schedule.epochs * self.task.loader.steps_per_epoch
        return min(steps, self.config.schedule.max_steps or steps)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on where a checkpoint of this run was written."""
        self.state.restore(saved)
        self.step, self.best = saved["step"], saved["best"]

    def fit(self, folder: Path) -> None:
        """Train from the current step to the last one, leaving everything in the run's folder.

        Raises NonFiniteError on every rank once a loss or gradient was not finite. Under fp16 the loss scaler
        skips a step whose gradients overflow, and the error comes once the scale has collapsed.
        """
        if self.step >= self.last_step:
            self.console.say(
                f"the run {self.config.name!r} is finished: {self.step} of {self.last_step} steps are done. "
                "A new name=… starts another; larger schedule.epochs or schedule.max_steps let this one go on"
            )
            return
        log = RunLog(folder, self.step, as_yaml(self.config)) if self.ranks.is_main else None
        self.network.train()
        self.console.start(self.step, self.last_step)
        batches = self.task.loader.batches(self.step)
        self.stopwatch.restart()
        while self.step < self.last_step:
            self.take_step(batches, log)
            if self.step % self.config.logging.every_steps == 0 or self.step == self.last_step:
                self._record(log)
            evaluated = self._evaluation_is_due()
            if evaluated:
                numbers = self._evaluate(log)
                self.stopwatch.restart()
            if evaluated or self._save_is_due():
                self._save(folder, numbers if evaluated else None)
                self.stopwatch.restart()
        if log:
            log.close()

    def take_step(self, batches: Iterator[TrainBatch], log: RunLog | None) -> None:
        """Take the next step on the next batch; log, rank 0's, shows the first batch of a run."""
        with self.stopwatch.waiting():
            batch = next(batches)
        if log and self.step == 0:
            log.picture("input", "first_training_batch", batch_picture(batch, self.task.categories), 0)
        epoch = self.step // self.task.loader.steps_per_epoch
        self.learning_rate = self.schedule(self.step, epoch)
        self.meter.add(self.train_step(batch, self.step, self.learning_rate))
        self.step += 1
        self.console.advance(self.step, epoch)

    def _record(self, log: RunLog | None) -> None:
        """Read the losses off the device, which is where training waits for it, check and record them."""
        self._check_finite()
        sums = torch.tensor(self.ranks.gather(self.meter.read()), dtype=torch.float64).sum(dim=0)
        localization, confidence = (sums / (self.meter.steps * self.ranks.world_size)).tolist()
        seconds, waited = self.stopwatch.read()
        record = {
            "step": self.step,
            "epoch": self._epoch_of_last_step(),
            "loss": localization + confidence,
            "loss_localization": localization,
            "loss_confidence": confidence,
            "learning_rate": self.learning_rate,
            "images_per_second": self.global_batch / seconds,
            "data_wait": waited,
        }
        if log:
            log.record("train", record)
        self.console.figures(self.step, record, seconds * (self.last_step - self.step))
        if self.step % self.config.logging.every_steps == 0:  # else a longer run's record spans this step too
            self.meter.reset()
        self.stopwatch.restart()

    def _check_finite(self) -> None:
        """Raise NonFiniteError on all ranks if any rank met a loss or gradient that is not finite."""
        met = {rank: bad for rank, bad in enumerate(self.ranks.gather(self.guard.read())) if bad}
        if met:
            step = min(bad.step for bad in met.values())
            rate = self.schedule(step, step // self.task.loader.steps_per_epoch)
            losses = "; ".join(f"rank {rank}: {bad}" for rank, bad in met.items() if bad.step == step)
            images = self.task.loader.image_ids(step)
            raise NonFiniteError(
                f"loss or gradient not finite in the step after {step} (learning rate {rate:.3e}); {losses}; "
                f"image ids {images}; nothing was saved since. Look at these images' boxes, "
                "or give a lower optimizer.learning_rate or more schedule.warmup_steps"
            )
        scaler = self.train_step.scaler
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise NonFiniteError(
                f"gradients overflow in fp16 step after step (loss scale {scaler.get_scale()} after step "
                f"{self.step}); give runtime.precision=bf16 or a lower optimizer.learning_rate"
            )

    def _evaluate(self, log: RunLog | None) -> dict[str, float]:
        """Score the network and show what it finds."""
        self._check_finite()
        self.ranks.take_main(list(self.network.buffers()))
        result = self.task.evaluator(self.network, self.runtime, self.ranks, self.console)
        if log:
            log.record(
                "evaluation", {"step": self.step, "epoch": self._epoch_of_last_step(), **result.numbers}
            )
            pictures = example_pictures(self.task.examples, result.detections, self.task.categories)
            for name, picture in pictures.items():
                log.picture("validation", name, picture, self.step)
        self.console.say(f"evaluation after {self.step} steps", *summary_lines(result.numbers), *result.notes)
        return result.numbers

    def _save(self, folder: Path, numbers: dict[str, float] | None) -> None:
        """Write a checkpoint, and best.pt where this step's evaluation is the best so far."""
        self._check_finite()
        is_best = numbers is not None and (self.best is None or numbers["AP"] > self.best["AP"])
        if numbers is not None and is_best:
            self.best = {"AP": numbers["AP"], "step": self.step}
        captured = self.state.capture()
        if not self.ranks.is_main:
            return
        path = step_file(folder / "checkpoints", self.step)
        write(
            path,
            {
                "format": FORMAT,
                "step": self.step,
                "epoch": self._epoch_of_last_step(),
                "config": as_plain(self.config),
                "world_size": self.ranks.world_size,
                "fingerprint": self.task.fingerprint,
                "categories": {
                    "ids": list(self.task.categories.ids),
                    "names": list(self.task.categories.names),
                },
                "versions": package_versions(),
                "numbers": numbers,
                "best": self.best,
                **captured,
            },
        )
        if is_best:
            copy(path, path.with_name("best.pt"))
        keep_newest(path.parent, self.config.checkpoint.keep)

    def _evaluation_is_due(self) -> bool:
        epochs, position = divmod(self.step, self.task.loader.steps_per_epoch)
        last = epochs == self.config.schedule.epochs
        return position == 0 and (last or self.config.evaluation.due(epochs - 1))

    def _save_is_due(self) -> bool:
        every = self.config.checkpoint
        epochs, position = divmod(self.step, self.task.loader.steps_per_epoch)
        return (
            self.step == self.last_step
            or (every.every_steps is not None and self.step % every.every_steps == 0)
            or (every.every_epochs is not None and position == 0 and epochs % every.every_epochs == 0)
        )

    def _epoch_of_last_step(self) -> int:
        return (self.step - 1) // self.task.loader.steps_per_epoch

    def _wrapped(self) -> nn.Module:
        """Return the network as it is trained: compiled where configured, in DDP where there are ranks."""
        model: nn.Module = self.network
        if self.config.runtime.compile:
            model = cast(nn.Module, torch.compile(model))
        if self.ranks.world_size == 1:
            return model
        ids = [self.runtime.device] if self.runtime.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
