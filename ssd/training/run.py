"""A run as its folder has it: started, or gone on with after its newest checkpoint."""

from pathlib import Path

from ssd.checkpoint import load_run, saved_steps
from ssd.config import TrainConfig, as_plain
from ssd.console import RunConsole
from ssd.distributed import Ranks
from ssd.runtime import Runtime
from ssd.training.network import blank_network, build_network
from ssd.training.resume import check_same_run, shaping_values
from ssd.training.trainer import Task, Trainer


def start_or_resume(
    config: TrainConfig, task: Task, runtime: Runtime, ranks: Ranks, console: RunConsole, folder: Path
) -> Trainer:
    """Make the trainer of a run, at its first step or after the newest checkpoint in the run's folder.

    Raises CheckpointError where that checkpoint can't be read or is of a run shaped by other values.
    """
    num_classes = task.categories.num_classes
    checkpoints = saved_steps(folder / "checkpoints")
    if not checkpoints:
        network = build_network(config.model, num_classes, config.seed)
        return Trainer(config, network, task, runtime, ranks, console)
    saved = load_run(checkpoints[-1])
    check_same_run(
        shaping_values(saved["config"], saved["world_size"], saved["fingerprint"]),
        shaping_values(as_plain(config), ranks.world_size, task.fingerprint),
        config.name,
    )
    network = blank_network(config.model, num_classes, config.seed)
    trainer = Trainer(config, network, task, runtime, ranks, console)
    trainer.resume(saved)
    console.say(f"resuming {config.name!r} after step {trainer.step} from {checkpoints[-1]}")
    return trainer


def derived_numbers(trainer: Trainer) -> dict[str, str]:
    """Return what follows from config, data and machine, for the start-up table."""
    config, steps = trainer.config, trainer.task.loader.steps_per_epoch
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    schedule = trainer.schedule
    scaled = "scaled from" if config.optimizer.scale_learning_rate else "as given, not scaled:"
    milestones = ", ".join(map(str, schedule.milestones)) or "none"
    return {
        "network": f"SSD300, {config.model.backbone.value}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.network.num_classes} classes with background",
        "weights from": str(config.model.checkpoint or config.model.weights or f"random, seed {config.seed}"),
        "runs on": trainer.runtime.describe(),
        "global batch": f"{trainer.global_batch}: {trainer.ranks.world_size} × {config.data.batch_size}",
        "learning rate": f"{schedule.base:.4g} ({scaled} {config.optimizer.learning_rate:g} for 32 images), "
        f"warmup {schedule.warmup_steps} steps, × 0.1 before epochs {milestones}",
        "steps": f"{steps} an epoch, {trainer.last_step} in all, {trainer.step} done",
    }
