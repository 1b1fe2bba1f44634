"""What a step whose loss or gradients are not finite leads to, once the host gets to know of it."""

import json
from pathlib import Path
from typing import Any

from ssd.batches import TrainLoader
from ssd.config import OnNonfinite, TrainingConfig
from ssd.errors import UserError
from ssd.training.checkpoints import newest_checkpoint
from ssd.training.guard import BadSteps, FiniteGuard
from ssd.training.optimizer import Schedule
from ssd.training.resume import TrainState
from ssd.training.saver import CheckpointSaver
from ssd.training.session import Session

# Far below what fp16 training needs; there only when gradients overflow step after step.
SMALLEST_LOSS_SCALE = 2.0**-10
NAMED_IMAGES = 8  # in a message; the file beside it has them all


class NonFinitePolicy:
    """Stops, goes on, or takes back the newest checkpoint's weights, as training.on_nonfinite has it.

    The steps themselves were not taken (ssd.training.step). `count` is of the run, over its restarts.
    """

    def __init__(
        self, config: TrainingConfig, session: Session, state: TrainState, saver: CheckpointSaver
    ) -> None:
        self._config, self._session, self._state, self._saver = config, session, state, saver
        self.count = 0

    def check(self, guard: FiniteGuard, loader: TrainLoader, schedule: Schedule) -> None:
        """Look at what all ranks' guards saw since the last check; every rank calls this.

        Raises UserError on all of them.
        """
        seen = self._session.ranks.gather(guard.read())
        met = {rank: bad for rank, bad in enumerate(seen) if bad}
        if met:
            self.count += max(bad.count for bad in met.values())
            step = min(bad.step for bad in met.values())
            message = self._report(step, {rank: bad for rank, bad in met.items() if bad.step == step}, loader)
            message += f"; learning rate {schedule(step, step // loader.steps_per_epoch):.3e}"
            self._act(message)
        scaler = self._state.scaler
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            raise UserError(
                f"gradients overflow in fp16 step after step (loss scale {scaler.get_scale()}); "
                "give runtime.precision=bf16 or a lower optimizer.learning_rate"
            )

    def _report(self, step: int, met: dict[int, BadSteps], loader: TrainLoader) -> str:
        """Write what the step consisted of into the run's folder, on rank 0, and return a line about it."""
        contents = loader.contents(step)
        # Where one rank's loss is not finite all ranks' gradients are NaN: the others have no part in it.
        met = {rank: bad for rank, bad in met.items() if not bad.has_finite_loss} or met
        losses = "; ".join(
            f"rank {rank}: localisation {bad.localization}, confidence {bad.confidence}"
            for rank, bad in met.items()
        )
        path = self._session.folder / "nonfinite" / f"step_{step:08d}.json"
        where = ""
        if self._session.ranks.is_main:
            where = "; " + _write(path, {"step": step, "losses": losses, "images": contents})
        share = len(contents) // self._session.ranks.world_size
        suspects = [contents[rank * share + place]["image_id"] for rank in met for place in range(share)]
        return (
            f"loss or gradient not finite in the step after {step}, which was not taken ({losses}; "
            f"image ids {_some(suspects)}{where})"
        )

    def _act(self, message: str) -> None:
        mend = "Look at these boxes, or give a lower optimizer.learning_rate or more schedule.warmup_steps"
        if self._config.on_nonfinite is OnNonfinite.stop:
            raise UserError(f"{message}. Nothing was saved since. {mend}")
        if self.count > self._config.nonfinite_limit:
            limit = f"training.nonfinite_limit={self._config.nonfinite_limit}"
            raise UserError(f"{message}. {self.count} such steps are more than {limit}. {mend}")
        if self._config.on_nonfinite is OnNonfinite.rollback:
            message += f"; weights and momenta are those after step {self._roll_back()} again"
        self._session.console.say(f"{message}; going on ({self.count} such steps so far)")

    def _roll_back(self) -> int:
        """Take back what was learned up to the newest checkpoint, on all ranks; return its step.

        The step stays: the images between are not seen again, since the same ones would lead to the same end.
        """
        self._saver.wait()
        saved = newest_checkpoint(self._session)
        if saved is None:
            raise UserError(
                "training.on_nonfinite=rollback: there is no checkpoint yet; give a smaller "
                "checkpoint.every_steps, a lower optimizer.learning_rate or more schedule.warmup_steps"
            )
        self._state.restore_learned(saved.captured)
        return saved.step


def _some(ids: list[int]) -> str:
    """Name the first few."""
    more = len(ids) - NAMED_IMAGES
    return ", ".join(map(str, ids[:NAMED_IMAGES])) + (f" and {more} more" if more > 0 else "")


def _write(path: Path, content: dict[str, Any]) -> str:
    """Write a file and say where it is, or why not: the step's own message matters more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        return f"their boxes could not be written to {path}: {error.strerror}"
    return f"their boxes stand in {path}"
