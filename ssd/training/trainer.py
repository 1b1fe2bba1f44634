"""The training loop: take a step, then record, save and evaluate when they are due."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch

from ssd.batches import TrainBatch, TrainLoader
from ssd.categories import Categories
from ssd.checkpoint import CheckpointError, package_versions, step_file
from ssd.cli import as_plain
from ssd.config import OnNonfinite, Precision, TrainConfig
from ssd.distributed import ANOTHER_RANK_FAILED
from ssd.errors import UserError
from ssd.evaluation.coco import summary_lines
from ssd.evaluation.evaluator import Evaluator, example_pictures
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.training.guards import FiniteGuard, NonFinitePolicy, check_loss_scale, compare_replicas
from ssd.training.log import LossMeter, ReportMaker, RunLog, Stopwatch, batch_picture
from ssd.training.optimizer import build_optimizer, build_schedule
from ssd.training.saver import CheckpointSaver
from ssd.training.session import Session
from ssd.training.state import (
    SavedRun,
    TrainState,
    blank_network,
    build_network,
    check_override,
    check_same_run,
    load_newest,
)
from ssd.training.step import TrainStep, compile_and_share


@dataclass(frozen=True)
class Task:
    """What to learn: the training input, how to score it, and which validation images to show.

    batch_size: images per rank and step. examples: paths of the images to show, by image id. fingerprint: a
    hash of the cleaned training annotations. excluded: ids of images left out because their files are bad.
    """

    loader: TrainLoader
    batch_size: int
    evaluator: Evaluator
    examples: dict[int, str]
    categories: Categories
    fingerprint: str
    excluded: list[int]


FAILED = 1000  # sent by a rank that has no batch; a rank that has one sends the signal it received, or 0


class Trainer:
    """Trains a network on a task, from any step to the last one.

    `step` counts the optimizer steps done; the epoch and the position in it follow from it. Logging,
    evaluating and saving never change the trajectory.
    """

    def __init__(self, config: TrainConfig, network: SSD300, task: Task, session: Session) -> None:
        self.config, self.task, self.session = config, task, session
        self.ranks, self.console, runtime = session.ranks, session.console, session.runtime
        self.network = runtime.place(network)
        optimizer = build_optimizer(self.network, config.optimizer)
        scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision is Precision.fp16)
        self.meter, self.stopwatch = LossMeter(runtime.device), Stopwatch()
        self.guard = FiniteGuard(runtime.device)
        self.state = TrainState(self.network, optimizer, scaler, self.meter, self.ranks)
        model = compile_and_share(self.network, config.runtime, self.ranks)
        self.train_step = TrainStep(model, optimizer, scaler, self.guard, runtime, MultiBoxLoss())
        self.global_batch = task.batch_size * self.ranks.world_size
        self.schedule = build_schedule(config.optimizer, config.schedule, self.global_batch)
        self.steps_per_epoch = task.loader.steps_per_epoch
        self.saver = CheckpointSaver(config.checkpoint, session, self._rolls_back_to)
        self.nonfinite = NonFinitePolicy(config.training, session.folder, self.ranks)
        self.report = ReportMaker(session, self.ranks.is_main and config.logging.report)
        self.log: RunLog | None = None  # set on rank 0 while it trains
        self.step = 0
        self._known_bad: set[int] = set()  # ids of images replaced during training
        self._scores: list[float] = []  # AP of each evaluation
        self._may_roll_back = config.training.on_nonfinite is OnNonfinite.rollback
        self._roll_back_due = False  # a step was not finite: roll back at the next record or save that is due
        self._evaluation_missing = False  # resumed after a step that was saved but not yet evaluated

    @property
    def last_step(self) -> int:
        """Number of optimizer steps after which the run ends."""
        steps = self.config.schedule.epochs * self.steps_per_epoch
        return min(steps, self.config.schedule.max_steps or steps)

    @property
    def epoch(self) -> int:
        """Epoch of the latest step done."""
        return max(self.step - 1, 0) // self.steps_per_epoch

    @property
    def out_of_patience(self) -> bool:
        """Tell whether the last training.patience evaluations brought no new best AP."""
        patience, scores = self.config.training.patience, self._scores
        best = scores.index(max(scores)) if scores else 0
        return patience is not None and len(scores) - 1 - best >= patience

    @property
    def finished(self) -> bool:
        """Tell whether there are no more steps to take and no evaluation to run."""
        return (self.step >= self.last_step or self.out_of_patience) and not self._evaluation_missing

    def resume(self, saved: SavedRun) -> None:
        """Continue from a checkpoint of this run. Raises CheckpointError if its state doesn't fit."""
        try:
            self.state.restore(vars(saved))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"the run's checkpoint after step {saved.step} holds another state ({reason}); move it away"
            ) from error
        self.step = self.saver.step = saved.step
        self.saver.best = saved.best
        self.nonfinite.count = saved.nonfinite_steps
        self._known_bad = set(saved.bad_images)
        self._scores = saved.scores
        self._roll_back_due = saved.roll_back and self._may_roll_back
        self._evaluation_missing = self._evaluation_is_due() and saved.numbers is None

    def fit(self, facts: Mapping[str, str] | None = None) -> None:
        """Train from the current step to the last one; write all results to the run's folder.

        facts: the rows of the start-up table, written to starts.jsonl.
        Raises UserError on every rank, and Preempted after a signal. The steps done so far are saved first,
        unless a checkpoint can't be written (CheckpointError) or a loss or gradient was not finite.
        """
        if self.finished:
            return
        if self.ranks.is_main:
            folder = self.session.folder
            self.log = RunLog(folder, self.config, self.step, self._evaluation_missing, self.console)
            self.log.start(facts or {})
        try:
            self.network.train()
            self.console.start(self.step, self.last_step)
            self.session.signals.note_only()
            self.session.watchdog.alive()
            if self._evaluation_missing:
                self._evaluate()
            batches = self.agreed(self.task.loader.batches(self.step))
            self.stopwatch.restart()
            while self.step < self.last_step and not self.out_of_patience:
                self.take_step(next(batches))
                self._do_what_is_due()
            self.saver.check(final=True)
            if self.step < self.last_step:
                patience, best = self.config.training.patience, max(self._scores)
                self.console.say(
                    f"ended by training.patience={patience}: no evaluation since has beaten AP {best:.3f}"
                )
            self.report.finish()
        finally:
            self.report.close()
            self.saver.close()
            if self.log:
                self.log.close()

    def agreed(self, batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        """Yield this rank's batches while every rank has one; once a rank has none, all save and raise.

        With several ranks, the next batch is taken before the step on the current one is launched, so that
        the ranks agree on it while the step runs. A signal that arrives meanwhile counts one step later.
        """
        ahead = None
        while True:
            batch, error, highest = ahead or self._take(batches)
            told = highest()
            if batch is None or told == FAILED:
                self._save_unless_saved()
                raise error
            if told:
                self._leave(told)
            takes_ahead = self.ranks.world_size > 1 and self.step + 1 < self.last_step
            ahead = self._take(batches) if takes_ahead else None
            yield batch

    def _take(self, batches: Iterator[TrainBatch]) -> tuple[TrainBatch | None, UserError, Callable[[], int]]:
        """Take the next batch and start telling the other ranks, over a CPU group: no wait for the device.

        Returns the batch (None if this rank has none), the error that says why, and a function that waits for
        the highest value that any rank sent: FAILED, a signal's number, or 0.
        """
        batch, error = None, UserError(ANOTHER_RANK_FAILED)
        try:
            with self.stopwatch.waiting():
                batch = next(batches)
        except UserError as own_error:
            error = own_error
        told = FAILED if batch is None else self.session.signals.received
        return batch, error, self.ranks.begin_highest(told)

    def take_step(self, batch: TrainBatch) -> None:
        """Take one training step on this rank's batch."""
        if self.log and self.step == 0:
            self.log.picture("input", "first_training_batch", batch_picture(batch, self.task.categories), 0)
        epoch = self.step // self.steps_per_epoch
        self.learning_rate = self.schedule(self.step, epoch)
        self.meter.add(*self.train_step(batch, self.step, self.learning_rate))
        self.step += 1
        self.stopwatch.steps += 1
        self.session.watchdog.alive()
        self.console.advance(self.step, epoch)

    def _leave(self, number: int) -> NoReturn:
        """Save this step and raise Preempted. Every rank calls this after any rank received a signal."""
        if not self.step:
            self.session.signals.leave(0, number)
        self._save_unless_saved()
        path = step_file(self.session.folder / "checkpoints", self.step)
        then = "begins anew (resume.never)" if self.config.resume.never else "goes on"
        saved = f"after step {self.step} of {self.last_step}, saved in {path}; the same command {then}"
        self.session.signals.leave(self.step, number, saved)

    def _save_unless_saved(self) -> None:
        """Make sure this step is on disk. Raises CheckpointError on all ranks if it can't be written."""
        if self.saver.step != self.step:
            self.save()
        self.saver.check(final=True)

    def _do_what_is_due(self) -> None:
        every = self.config.training.compare_replicas_every
        if every and self.step % every == 0 and self.ranks.world_size > 1:
            compare_replicas(self.network, self.state.optimizer, self.ranks)
        if self._record_is_due():
            self._record()
        if self._save_is_due():
            self.save()
            self.stopwatch.restart()
        if self._evaluation_is_due():
            self._evaluate()
            self.stopwatch.restart()

    def _record_is_due(self) -> bool:
        return self.step % self.config.logging.every_steps == 0 or self.step == self.last_step

    def _save_is_due(self) -> bool:
        return self._saves_after(self.step) or self.step == self.last_step

    def _evaluation_is_due(self) -> bool:
        last = self.step == self.config.schedule.epochs * self.steps_per_epoch
        return last or self._evaluates_after(self.step)

    def _evaluates_after(self, step: int) -> bool:
        epochs, position = divmod(step, self.steps_per_epoch)
        return step > 0 and position == 0 and self.config.evaluation.due(epochs - 1)

    def _saves_after(self, step: int) -> bool:
        """Tell whether to save: also before each evaluation, so that a crash in it loses no step."""
        due = self.config.checkpoint.due(step, self.steps_per_epoch)
        return step > 0 and (due or self._evaluates_after(step))

    def _rolls_back_to(self, step: int) -> bool:
        """Tell whether a rollback may use this step's checkpoint: only if that save was scheduled."""
        return self._may_roll_back and self._saves_after(step)

    def _record(self) -> None:
        """Check and record the losses: reading them is the one place where training waits for the device."""
        self._check_health()
        sums = torch.tensor(self.ranks.gather(self.meter.sums.tolist()), dtype=torch.float64).sum(dim=0)
        localization, confidence = (sums[:2] / sums[2]).tolist()
        seconds, waited = self.stopwatch.read()
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": localization + confidence,
            "loss_localization": localization,
            "loss_confidence": confidence,
            "learning_rate": self.learning_rate,
            "images_per_second": self.global_batch / seconds,
            "data_wait": waited,
        }
        if self.log:
            self.log.record("train", record)
        self.console.figures(self.step, record, seconds * (self.last_step - self.step))
        if self.step % self.config.logging.every_steps == 0:  # else a longer run's record spans this step too
            self.meter.sums.zero_()
        self.stopwatch.restart()

    def _check_health(self) -> None:
        """Share with all ranks what went wrong on any of them since the last check, and act on the config."""
        if told := self.nonfinite.check(self.guard, self.task.loader):
            self.console.say(f"{told}; going on ({self.nonfinite.count} such steps so far)")
            self._roll_back_due = self._may_roll_back
        # Not at a save caused by a signal or an error: an uninterrupted run has no check at this step.
        if self._roll_back_due and (self._record_is_due() or self._save_is_due()):
            self._roll_back()
        check_loss_scale(self.state.scaler)
        self.saver.check()
        for bad_images in self.ranks.gather(self.task.loader.bad_images()):
            for image_id, reason in bad_images.items():
                if image_id not in self._known_bad:
                    self.console.say(f"bad image, its place in the batch is taken by another: {reason}")
                    self._known_bad.add(image_id)

    def _roll_back(self) -> None:
        """Restore weights, momenta and loss scale from the newest scheduled checkpoint, on all ranks.

        Checkpoints written because of a signal or an error don't count: an uninterrupted run has none. The
        step number stays: training on the same images again would end in the same non-finite step.
        """
        self.saver.wait()
        saved = load_newest(self.session, self._rolls_back_to)
        if saved is None:
            raise UserError(
                "training.on_nonfinite=rollback: there is no checkpoint yet that was due; give a smaller "
                "checkpoint.every_steps, a lower optimizer.learning_rate or more schedule.warmup_steps"
            )
        self.state.restore_learned(vars(saved))
        self._roll_back_due = False
        self.console.say(f"weights and momenta are those after step {saved.step} again")

    def _evaluate(self) -> None:
        """Score the network, record the results, and save this step again, now with the numbers."""
        self._check_health()
        self.ranks.take_main(list(self.network.buffers()))
        # A batch is quick, but after the last one rank 0 computes COCO's numbers while the others wait.
        scoring = timedelta(minutes=self.config.evaluation.timeout_minutes)
        self.session.watchdog.alive(scoring)
        evaluator, rows = self.task.evaluator, []
        for found in evaluator.detect(self.network, self.session.runtime, self.ranks, self.console):
            rows.append(found)
            self.session.watchdog.alive(scoring)
            if number := self.ranks.highest(self.session.signals.received):
                self._leave(number)
        result = evaluator.score(rows, self.ranks)
        self.saver.check()  # scoring takes a while: is the folder still there?
        if self.log and result.scored:  # both are set on rank 0 only
            self.log.record("evaluation", {"step": self.step, "epoch": self.epoch, **result.numbers})
            self.log.analysis(result.scored, self.step)
            pictures = example_pictures(self.task.examples, result.scored, self.task.categories)
            for name, picture in pictures.items():
                self.log.picture("validation", name, picture, self.step)
            if result.numbers["AP"] > max(self._scores, default=-2.0):
                self.log.detections(result.detections, self.step)
        self.console.say(f"evaluation after {self.step} steps", *summary_lines(result.numbers), *result.notes)
        self._scores.append(result.numbers["AP"])
        self.save(result.numbers)
        if self.step < self.last_step:
            self.report.begin()

    def save(self, numbers: dict[str, float] | None = None) -> None:
        """Copy the state and start writing it, also as best.pt if this step's evaluation is the best."""
        self.saver.wait()  # so that the check below sees how the previous write ended
        self._check_health()
        best = self.saver.best
        if numbers is not None and (best is None or numbers["AP"] > best["AP"]):
            best = {"AP": numbers["AP"], "step": self.step}
        self.saver.save(
            SavedRun(
                step=self.step,
                epoch=self.epoch,
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
                best=best,
                scores=[*self._scores],
                roll_back=self._roll_back_due,
                **self.state.collect(),
            )
        )


def start_or_resume(
    config: TrainConfig, saved: SavedRun | None, task: Task, session: Session
) -> tuple[Trainer, str]:
    """Build a run's trainer, at step 0 or at the step of its checkpoint.

    Returns the trainer and a phrase that says where its weights come from. Raises UserError for a bad
    resume.override, CheckpointError if keys that shape a run differ from the checkpoint's.
    """
    check_override(config.resume.override)
    if saved is None:
        network, origin = build_network(config.model, task.categories, config.seed)
        return Trainer(config, network, task, session), origin
    check_same_run(config, task.fingerprint, session.ranks, saved)
    network = blank_network(config.model, task.categories.num_classes, config.seed)
    trainer = Trainer(config, network, task, session)
    trainer.resume(saved)
    if trainer.finished:
        session.console.say(
            f"the run in {session.folder} is finished: {trainer.step} of {trainer.last_step} steps are done. "
            "A new name=… starts another; this one goes on with larger schedule.epochs, schedule.max_steps "
            "or training.patience"
        )
    else:
        session.console.say(f"resuming {config.name!r} after step {trainer.step}")
    return trainer, f"the run's own checkpoint after step {trainer.step}"


def derived_numbers(trainer: Trainer, origin: str) -> dict[str, str]:
    """Return the numbers derived from config, data and machine, as rows of the start-up table."""
    config, schedule, batch_size = trainer.config, trainer.schedule, trainer.task.batch_size
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    scaled = "scaled from" if config.optimizer.scale_learning_rate else "as given, not scaled:"
    given = config.data.batch_size
    kept = "" if batch_size == given else f" (the run's; data.batch_size={given} is not used)"
    milestones = ", ".join(map(str, schedule.milestones)) or "none"
    steps_per_epoch, last_step = trainer.steps_per_epoch, trainer.last_step
    return {
        "network": f"SSD300, {config.model.backbone.value}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.network.num_classes} classes with background",
        "weights from": origin,
        "runs on": trainer.session.runtime.describe(),
        "global batch": f"{trainer.global_batch}: {trainer.ranks.world_size} × {batch_size}{kept}",
        "learning rate": f"{schedule.base:.4g} ({scaled} {config.optimizer.learning_rate:g} for 32 images), "
        f"warmup {schedule.warmup_steps} steps, × 0.1 before epochs {milestones}",
        "steps": f"{steps_per_epoch} an epoch, {last_step} in all (epochs 0 to "
        f"{(last_step - 1) // steps_per_epoch}), {trainer.step} done",
    }
