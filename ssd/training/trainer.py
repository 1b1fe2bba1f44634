"""The training loop: steps, and what is due after a step."""

from collections.abc import Iterator
from datetime import timedelta

import torch

from ssd.batches import TrainBatch
from ssd.checkpoint import package_versions
from ssd.cli import as_plain, as_yaml
from ssd.config import OnError, Precision, TrainConfig
from ssd.errors import UserError
from ssd.evaluation.coco import summary_lines
from ssd.evaluation.evaluator import example_pictures
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.training.batch_picture import batch_picture
from ssd.training.guard import FiniteGuard
from ssd.training.log import RunLog
from ssd.training.meter import LossMeter, Stopwatch
from ssd.training.network import as_trained
from ssd.training.nonfinite import NonFinitePolicy
from ssd.training.optimizer import build_optimizer, build_schedule
from ssd.training.replicas import compare_replicas
from ssd.training.resume import TrainState
from ssd.training.saved_run import SavedRun
from ssd.training.saver import CheckpointSaver
from ssd.training.session import Session
from ssd.training.step import TrainStep
from ssd.training.task import Task


class Trainer:
    """Trains a network on a task until its last step, from any step on.

    `step` counts optimizer steps done; epoch and position in it follow from it. Everything that logging,
    evaluating and saving do leaves the trajectory as it is.
    """

    def __init__(self, config: TrainConfig, network: SSD300, task: Task, session: Session) -> None:
        self.config, self.task, self.session = config, task, session
        self.runtime, self.ranks, self.console = session.runtime, session.ranks, session.console
        self.network = self.runtime.place(network)
        self.global_batch = task.batch_size * self.ranks.world_size
        self.schedule = build_schedule(config.optimizer, config.schedule, self.global_batch)
        self.guard = FiniteGuard(self.runtime.device)
        self.meter = LossMeter(self.runtime.device)
        self.stopwatch = Stopwatch()
        optimizer = build_optimizer(self.network, config.optimizer)
        scaler = torch.amp.GradScaler(
            self.runtime.device.type, enabled=self.runtime.precision is Precision.fp16
        )
        self.state = TrainState(self.network, optimizer, scaler, self.meter, self.ranks)
        self.train_step = TrainStep(
            as_trained(self.network, config.runtime, self.ranks),
            optimizer,
            scaler,
            self.guard,
            self.runtime,
            MultiBoxLoss(),
        )
        self.saver = CheckpointSaver(config.checkpoint, session)
        self.nonfinite = NonFinitePolicy(config.training, session, self.state, self.saver)
        self.step = 0
        self._overdue = False  # the evaluation after `step` is still to be done
        self._log: RunLog | None = None  # rank 0's, while training
        self._known_bad: set[int] = set()

    @property
    def last_step(self) -> int:
        """Optimizer steps at which the run ends."""
        steps = self.config.schedule.epochs * self.task.loader.steps_per_epoch
        return min(steps, self.config.schedule.max_steps or steps)

    def resume(self, saved: SavedRun) -> None:
        """Go on where a checkpoint of this run was written."""
        self.state.restore(saved.captured)
        self.saver.resume(saved)
        self.step = saved.step
        self.nonfinite.count = saved.nonfinite_steps
        self._known_bad = set(saved.bad_images)
        self._overdue = self._evaluation_is_due() and saved.numbers is None

    def fit(self) -> None:
        """Train from the current step to the last one, leaving everything in the run's folder.

        Raises UserError, UserError and CheckpointError on every rank; after saving, on every rank,
        UserError for an image that can't be read and Preempted for a signal.
        """
        if self.step >= self.last_step and not self._overdue:
            self.console.say(
                f"the run {self.config.name!r} is finished: {self.step} of {self.last_step} steps are done. "
                "A new name=… starts another; larger schedule.epochs or schedule.max_steps let this one go on"
            )
            return
        self._log = self._open_log()
        try:
            self._train()
        finally:
            self.saver.close()
            if self._log:
                self._log.close()

    def _train(self) -> None:
        self.network.train()
        self.console.start(self.step, self.last_step)
        self.session.signals.note_only()
        self.session.watchdog.alive()
        if self._overdue:  # the run ended in this evaluation
            self._evaluate()
        batches = self.task.loader.batches(self.step)
        self.stopwatch.restart()
        while self.step < self.last_step:
            self.take_step(batches)
            self._do_what_is_due()
        self.saver.finish()

    def take_step(self, batches: Iterator[TrainBatch]) -> None:
        """Take the next step on the next batch."""
        batch = self._agreed_batch(batches)
        if self._log and self.step == 0:
            self._log.picture("input", "first_training_batch", batch_picture(batch, self.task.categories), 0)
        epoch = self.step // self.task.loader.steps_per_epoch
        self.learning_rate = self.schedule(self.step, epoch)
        self.meter.add(*self.train_step(batch, self.step, self.learning_rate))
        self.step += 1
        self.session.watchdog.alive()
        self.console.advance(self.step, epoch)

    def _agreed_batch(self, batches: Iterator[TrainBatch]) -> TrainBatch:
        """Return this rank's next batch if every rank has one and none was asked to stop.

        The ranks agree in every step, over a CPU group: no device is waited for. Else all save and raise.
        """
        batch, error = None, None
        try:
            with self.stopwatch.waiting():
                batch = next(batches)
        except UserError as own_error:
            error = own_error
        try:
            asked = self.ranks.agree(error, self.session.signals.received)
        except UserError:
            self._save_unless_saved()
            raise
        if not asked:
            assert batch is not None  # for no rank had an error
            return batch
        if self.step:
            self._save_unless_saved()
        raise self.session.signals.leave(self.step, asked)

    def _do_what_is_due(self) -> None:
        every = self.config.training.compare_replicas_every
        if every is not None and self.step % every == 0 and self.ranks.world_size > 1:
            compare_replicas(self.network, self.state.optimizer, self.ranks)
        if self.step % self.config.logging.every_steps == 0 or self.step == self.last_step:
            self._record()
        if self._save_is_due() or self._evaluation_is_due():
            self.save(None)  # before an evaluation too: whatever happens in it, no step is lost
            self.stopwatch.restart()
        if self._evaluation_is_due():
            self._evaluate()
            self.stopwatch.restart()

    def _record(self) -> None:
        """Read the losses off the device, which is where training waits for it, check and record them."""
        self._check_health()
        sums = torch.tensor(self.ranks.gather(self.meter.read()), dtype=torch.float64).sum(dim=0)
        localization, confidence = (sums[:2] / sums[2]).tolist()
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
        if self._log:
            self._log.record("train", record)
        self.console.figures(self.step, record, seconds * (self.last_step - self.step))
        if self.step % self.config.logging.every_steps == 0:  # else a longer run's record spans this step too
            self.meter.reset()
        self.stopwatch.restart()

    def _check_health(self) -> None:
        """Tell all ranks what any of them met since the last time, and do what the config says about it."""
        self.nonfinite.check(self.guard, self.task.loader, self.schedule)
        self.saver.check()
        for bad_images in self.ranks.gather(self.task.loader.bad_images()):
            for image_id, reason in bad_images.items():
                if image_id not in self._known_bad:
                    self.console.say(f"bad image, its place in the batch is taken by another: {reason}")
                    self._known_bad.add(image_id)

    def _evaluate(self) -> None:
        """Score the network, show what it finds, and save with the numbers."""
        self._check_health()
        self.ranks.take_main(list(self.network.buffers()))
        rows = []
        for found in self.task.evaluator.detect(self.network, self.runtime, self.ranks, self.console):
            self._leave_if_asked()
            rows.append(found)
        result = self.task.evaluator.score(rows, self.ranks)
        self._overdue = False
        if self._log:
            self._log.record(
                "evaluation", {"step": self.step, "epoch": self._epoch_of_last_step(), **result.numbers}
            )
            pictures = example_pictures(self.task.examples, result.detections, self.task.categories)
            for name, picture in pictures.items():
                self._log.picture("validation", name, picture, self.step)
        self.console.say(f"evaluation after {self.step} steps", *summary_lines(result.numbers), *result.notes)
        self.save(result.numbers)

    def _leave_if_asked(self) -> None:
        """Raise Preempted on all ranks, while evaluating, if one of them got a signal: this step is saved."""
        asked = self.ranks.agree(None, self.session.signals.received)
        # Rank 0 may compute COCO's numbers next while the others wait for it.
        self.session.watchdog.alive(timedelta(minutes=self.config.evaluation.timeout_minutes))
        if asked:
            self._save_unless_saved()
            raise self.session.signals.leave(self.step, asked)

    def save(self, numbers: dict[str, float] | None) -> None:
        """Copy the state and begin to write it; best.pt too where this evaluation is the best so far."""
        self.saver.wait()  # for what it has to tell
        self._check_health()
        saved = SavedRun(
            step=self.step,
            epoch=self._epoch_of_last_step(),
            config=as_plain(self.config),
            world_size=self.ranks.world_size,
            global_batch=self.global_batch,
            fingerprint=self.task.fingerprint,
            categories=self.task.categories,
            excluded_images=self.task.excluded,
            bad_images=sorted(self._known_bad),
            nonfinite_steps=self.nonfinite.count,
            versions=package_versions(),
            numbers=numbers,
            best=None,  # known where it is written
            captured=self.state.capture(),
        )
        self.saver.save(saved)

    def _save_unless_saved(self) -> None:
        """Have this step on disk. Raises CheckpointError on all ranks where it can't be."""
        if self.saver.step != self.step:
            self.save(None)
        self.saver.finish()

    def _open_log(self) -> RunLog | None:
        if not self.ranks.is_main:
            return None
        complain = None if self.config.checkpoint.on_error is OnError["fail"] else self.console.say
        log = RunLog(self.session.folder, self.step, self._overdue, complain)
        log.config(as_yaml(self.config))
        return log

    def _evaluation_is_due(self) -> bool:
        epochs, position = divmod(self.step, self.task.loader.steps_per_epoch)
        last = epochs == self.config.schedule.epochs
        return self.step > 0 and position == 0 and (last or self.config.evaluation.due(epochs - 1))

    def _save_is_due(self) -> bool:
        steps_per_epoch = self.task.loader.steps_per_epoch
        return self.step == self.last_step or self.config.checkpoint.due(self.step, steps_per_epoch)

    def _epoch_of_last_step(self) -> int:
        return max(self.step - 1, 0) // self.task.loader.steps_per_epoch
