"""A run as its folder has it: started, or gone on with after its newest good checkpoint."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from ssd.checkpoint import CheckpointError, load_run, saved_steps, set_aside
from ssd.config import ConfigError, TrainConfig, as_plain
from ssd.distributed import Ranks
from ssd.training.network import blank_network, build_network
from ssd.training.resume import check_same_run, shaping_values
from ssd.training.session import Session
from ssd.training.task import Task
from ssd.training.trainer import Trainer

CHOOSING_TIMEOUT = timedelta(minutes=10)


def newest_checkpoint(session: Session) -> dict[str, Any] | None:
    """Return a run's newest good checkpoint, the same on all ranks; None where the run has not begun.

    Newer ones that are damaged are named and kept under another name. best.pt counts as the oldest.
    Raises CheckpointError where there are checkpoints and none is good: starting over would lose the run.
    """
    folder = session.folder / "checkpoints"
    chosen = session.ranks.on_main(lambda: _choose(folder), CHOOSING_TIMEOUT)
    session.console.say(*chosen["broken"])
    if chosen["path"]:
        return load_run(Path(chosen["path"]))
    if chosen["broken"]:
        raise CheckpointError(
            "no checkpoint of the run is good: "
            + "; ".join(chosen["broken"])
            + ". Put a good one there, or give name=… to start another run"
        )
    return None


def _choose(folder: Path) -> dict[str, Any]:
    """Return the newest good checkpoint's path ("" for none), and a line about each newer one."""
    broken: dict[Path, str] = {}
    best = folder / "best.pt"
    for path in [*reversed(saved_steps(folder)), *([best] if best.exists() else [])]:
        try:
            load_run(path)
        except CheckpointError as error:
            broken[path] = str(error)
            continue
        lines = [f"{why}; it is kept as {set_aside(bad).name}" for bad, why in broken.items()]
        return {"path": str(path), "broken": lines}
    return {"path": "", "broken": list(broken.values())}


def continued(config: TrainConfig, saved: dict[str, Any] | None, ranks: Ranks) -> TrainConfig:
    """Return the config with the run's global batch shared out among the ranks that there are now.

    Where their number has changed the checkpoint's global batch wins over data.batch_size.
    Raises ConfigError where it can't be shared out equally, with at least 2 images each.
    """
    if saved is None or "data.batch_size" in config.resume.override:
        return config
    global_batch: int = saved["global_batch"]
    if saved["world_size"] == ranks.world_size:
        return config
    working = [n for n in range(1, global_batch // 2 + 1) if global_batch % n == 0]
    if ranks.world_size not in working:
        raise ConfigError(
            f"{ranks.world_size} ranks can't share out the run's global batch of {global_batch}: each takes "
            f"equally many images, at least 2. Numbers of ranks that work: {', '.join(map(str, working))}"
        )
    return replace(config, data=replace(config.data, batch_size=global_batch // ranks.world_size))


def start_or_resume(
    config: TrainConfig, saved: dict[str, Any] | None, task: Task, session: Session
) -> tuple[Trainer, str]:
    """Make the trainer of a run, at its first step or where its checkpoint was saved.

    Returns it and what its weights come from. Raises CheckpointError where the checkpoint is of a run shaped
    by other values.
    """
    num_classes = task.categories.num_classes
    if saved is None:
        network, origin = build_network(config.model, task.categories, config.seed)
        return Trainer(config, network, task, session), origin
    now = as_plain(config)
    was = saved["config"]
    # The share of each rank follows from the global batch; that is what must stay.
    was["data"]["batch_size"] = saved["global_batch"] // session.ranks.world_size
    check_same_run(
        shaping_values(was, saved["fingerprint"]),
        shaping_values(now, task.fingerprint),
        config.resume.override,
        config.name,
    )
    network = blank_network(config.model, num_classes, config.seed)
    trainer = Trainer(config, network, task, session)
    trainer.resume(saved)
    origin = f"the run's own checkpoint after step {trainer.step}"
    if saved["world_size"] != session.ranks.world_size:
        origin += (
            f", saved by {saved['world_size']} ranks: its global batch of {saved['global_batch']} stays, "
            f"{config.data.batch_size} images each for {session.ranks.world_size}"
        )
    session.console.say(f"resuming {config.name!r} after step {trainer.step}")
    return trainer, origin


def derived_numbers(trainer: Trainer, origin: str) -> dict[str, str]:
    """Return what follows from config, data and machine, for the start-up table."""
    config, steps = trainer.config, trainer.task.loader.steps_per_epoch
    parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
    schedule = trainer.schedule
    scaled = "scaled from" if config.optimizer.scale_learning_rate else "as given, not scaled:"
    milestones = ", ".join(map(str, schedule.milestones)) or "none"
    return {
        "network": f"SSD300, {config.model.backbone.value}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.network.num_classes} classes with background",
        "weights from": origin,
        "runs on": trainer.runtime.describe(),
        "global batch": f"{trainer.global_batch}: {trainer.ranks.world_size} × {config.data.batch_size}",
        "learning rate": f"{schedule.base:.4g} ({scaled} {config.optimizer.learning_rate:g} for 32 images), "
        f"warmup {schedule.warmup_steps} steps, × 0.1 before epochs {milestones}",
        "steps": f"{steps} an epoch, {trainer.last_step} in all, {trainer.step} done",
    }
