"""A run as its folder has it: started, or gone on with after its newest good checkpoint."""

from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.training.network import blank_network, build_network
from ssd.training.resume import check_same_run, shaping_values
from ssd.training.saved_run import SavedRun
from ssd.training.session import Session
from ssd.training.task import Task
from ssd.training.trainer import Trainer


def start_or_resume(
    config: TrainConfig, saved: SavedRun | None, task: Task, session: Session
) -> tuple[Trainer, str]:
    """Make the trainer of a run, at its first step or where its checkpoint was saved.

    Returns it and what its weights come from. Raises CheckpointError where the checkpoint is of a run shaped
    by other values.
    """
    if saved is None:
        network, origin = build_network(config.model, task.categories, config.seed)
        return Trainer(config, network, task, session), origin
    _check_same_run(config, saved, task, session)
    network = blank_network(config.model, task.categories.num_classes, config.seed)
    trainer = Trainer(config, network, task, session)
    trainer.resume(saved)
    session.console.say(f"resuming {config.name!r} after step {trainer.step}")
    return trainer, f"the run's own checkpoint after step {trainer.step}"


def _check_same_run(config: TrainConfig, saved: SavedRun, task: Task, session: Session) -> None:
    now, was = as_plain(config), saved.config
    if session.ranks.world_size != saved.world_size:  # the global batch stays, whatever a rank's was to be
        was = was | {"data": was["data"] | {"batch_size": config.data.batch_size}}
    check_same_run(
        shaping_values(was, saved.fingerprint),
        shaping_values(now, task.fingerprint),
        config.resume.override,
        config.name,
    )


def derived_numbers(trainer: Trainer, origin: str) -> dict[str, str]:
    """Return what follows from config, data and machine, for the start-up table."""
    config, steps = trainer.config, trainer.task.loader.steps_per_epoch
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    schedule = trainer.schedule
    scaled = "scaled from" if config.optimizer.scale_learning_rate else "as given, not scaled:"
    given = config.data.batch_size
    kept = "" if trainer.task.batch_size == given else f" (the run's; data.batch_size={given} is not used)"
    milestones = ", ".join(map(str, schedule.milestones)) or "none"
    return {
        "network": f"SSD300, {config.model.backbone.value}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.network.num_classes} classes with background",
        "weights from": origin,
        "runs on": trainer.runtime.describe(),
        "global batch": f"{trainer.global_batch}: {trainer.ranks.world_size} × {trainer.task.batch_size}"
        + kept,
        "learning rate": f"{schedule.base:.4g} ({scaled} {config.optimizer.learning_rate:g} for 32 images), "
        f"warmup {schedule.warmup_steps} steps, × 0.1 before epochs {milestones}",
        "steps": f"{steps} an epoch, {trainer.last_step} in all, {trainer.step} done",
        **never_reached(config, steps, trainer.last_step),
    }


def never_reached(config: TrainConfig, steps_per_epoch: int, last_step: int) -> dict[str, str]:
    """Name the listed epochs that a run won't come to: a smaller schedule.epochs leaves them behind."""
    beyond = {
        "schedule.milestones": [
            epoch for epoch in config.schedule.milestones if epoch * steps_per_epoch >= last_step
        ],
        "evaluation.epochs": [
            epoch for epoch in config.evaluation.epochs if (epoch + 1) * steps_per_epoch > last_step
        ],
    }
    named = [f"{key} {', '.join(map(str, epochs))}" for key, epochs in beyond.items() if epochs]
    end = f"the run ends in epoch {(last_step - 1) // steps_per_epoch}"
    return {"never reached": f"{'; '.join(named)}: {end}"} if named else {}
