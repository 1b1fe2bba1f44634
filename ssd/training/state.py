"""A run's state: how it begins, what a checkpoint holds, and what must agree to resume (RECIPE 9)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import msgspec
import torch
import torchvision
from torch import nn
from torch.optim import SGD

from ssd.categories import COCO, Categories
from ssd.checkpoint import FORMAT, CheckpointError, load_file, load_run, newest_checkpoint
from ssd.cli import as_plain, by_full_key
from ssd.config import ModelConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.errors import UserError, require
from ssd.model import SSD300
from ssd.published import load_weights
from ssd.training.log import LossMeter
from ssd.training.session import Session

CHOOSING_TIMEOUT = timedelta(minutes=10)
# The keys of best.pt: what evaluation, prediction and fine-tuning need, without what only resuming needs.
DETECTOR = ("format", "step", "epoch", "config", "categories", "versions", "numbers", "model")

# The keys that shape the trajectory. All others may change when a run resumes.
MUST_STAY = (
    "data.train_annotations",  # by content, not by path
    "seed",
    *(f"data.{key}" for key in ("batch_size", "augment", "limit", "crowd", "min_box_px")),
    *(f"model.{key}" for key in ("backbone", "weights", "checkpoint", "freeze_batchnorm")),
    *(f"optimizer.{key}" for key in ("learning_rate", "scale_learning_rate", "momentum", "weight_decay")),
    *(f"schedule.{key}" for key in ("milestones", "warmup_steps")),
    *(f"runtime.{key}" for key in ("precision", "tf32", "channels_last", "compile", "deterministic")),
)


@dataclass(frozen=True)
class SavedRun:
    """A run after some step. Its fields are the keys of a checkpoint; they are defined only here.

    step: optimizer steps done. epoch: of the last of them. config: TrainConfig as plain values.
    world_size, global_batch: ranks and images per step. fingerprint: of the cleaned training annotations.
    excluded_images: ids of images left out because their files are bad. bad_images: ids of images replaced
    during training. nonfinite_steps: number of steps not taken. numbers: COCO's 12, if this step was
    evaluated. best: AP and step of the evaluation that best.pt belongs to. model, optimizer, scaler, ranks:
    what TrainState.collect returns. scores: AP of each evaluation so far. roll_back: whether the next check
    that is due rolls back because of a non-finite step. Older checkpoints lack the last two.
    """

    step: int
    epoch: int
    config: dict[str, Any]
    world_size: int
    global_batch: int
    fingerprint: str
    categories: Categories
    excluded_images: list[int]
    bad_images: list[int]
    nonfinite_steps: int
    versions: dict[str, str]
    numbers: dict[str, float] | None
    best: dict[str, Any] | None
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ranks: list[dict[str, Any]]
    scores: list[float] = field(default_factory=list)
    roll_back: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Return the content of the checkpoint file."""
        return vars(self) | {"format": FORMAT, "categories": self.categories.as_plain()}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. Raises CheckpointError if it can't be read or lacks an entry."""
        try:
            return msgspec.convert(load_run(path), cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"checkpoint {path} can't be resumed from ({error}): it was a best.pt, or another version of "
                "this trainer wrote it; begin another run from its weights: name=… model.checkpoint=…"
            ) from error


def load_newest(session: Session, wanted: Callable[[int], bool] = lambda _: True) -> SavedRun | None:
    """Return a run's newest good checkpoint among the wanted steps, the same on all ranks; None without any.

    Raises CheckpointError on all ranks if there are checkpoints but none is good (starting over would lose
    the run), or if the system fails to read one.
    """

    def choose() -> tuple[str | None, list[str]]:
        path, damaged = newest_checkpoint(session.folder / "checkpoints", wanted)
        return str(path) if path else None, damaged

    path, damaged = session.ranks.on_main(choose, CHOOSING_TIMEOUT)
    if path:
        session.console.say(*damaged)
        return session.ranks.on_all(lambda: SavedRun.load(Path(path)))
    if damaged:
        raise CheckpointError(
            f"no checkpoint of the run is good: {'; '.join(damaged)}. Put a good step_*.pt there, or give "
            "name=… to start another run, with model.checkpoint=… from the weights of a best.pt"
        )
    return None


def check_override(keys: list[str]) -> None:
    """Raise UserError if resume.override has a key that may change anyway, or doesn't exist."""
    for key in keys:
        require(key in MUST_STAY, "resume.override", keys, f"{key} is none of {', '.join(MUST_STAY)}")


def check_same_run(config: TrainConfig, fingerprint: str, ranks: Ranks, saved: SavedRun) -> None:
    """Raise CheckpointError, with both values and the fix, if any key of MUST_STAY differs.

    Keys in resume.override may differ.
    """
    was, now = by_full_key(saved.config), by_full_key(as_plain(config))
    for values, held in ((was, saved.fingerprint), (now, fingerprint)):
        values["data.train_annotations"] = f"those of fingerprint {held}"
    if ranks.world_size != saved.world_size:  # the global batch stays, whatever each rank's share is
        was["data.batch_size"] = now["data.batch_size"]
    free = config.resume.override
    differing = [key for key in MUST_STAY if was.get(key) != now[key] and key not in free]
    if differing:
        lines = "\n".join(f"  {key}: {was.get(key)} in the checkpoint, {now[key]} now" for key in differing)
        raise CheckpointError(
            f"the run {config.name!r} can't go on with other values of what shapes it:\n{lines}\n"
            "give the old values, or name=… to start another run, or, to go on as another run than it was,\n"
            f"'resume.override=[{','.join(differing)}]'"
        )


def images_per_rank(config: TrainConfig, saved: SavedRun | None, ranks: Ranks) -> int:
    """Return the number of images per step for each rank: data.batch_size when a run begins.

    A resumed run keeps its global batch for any number of ranks, unless resume.override names
    data.batch_size. Raises UserError if the ranks can't share it equally, with at least 2 images each.
    """
    if saved is None or "data.batch_size" in config.resume.override:
        return config.data.batch_size
    global_batch = saved.global_batch
    working = [n for n in range(1, global_batch // 2 + 1) if global_batch % n == 0]
    if ranks.world_size not in working:
        raise UserError(
            f"{ranks.world_size} ranks can't share out the run's global batch of {global_batch}: each takes "
            f"equally many images, at least 2. Numbers of ranks that work: {', '.join(map(str, working))}"
        )
    return global_batch // ranks.world_size


@dataclass(frozen=True)
class TrainState:
    """What changes during training, except the step, which determines epoch and position in it."""

    network: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    meter: LossMeter
    ranks: Ranks

    def collect(self) -> dict[str, Any]:
        """Return the complete state as plain values. Every rank takes part, and waits for its device.

        BatchNorm statistics differ between ranks during training, which doesn't use them; all ranks take rank
        0's.
        """
        self.ranks.take_main(list(self.network.buffers()))
        on_gpu = self.ranks.device.type == "cuda"
        of_rank = {
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.ranks.device) if on_gpu else None,
            "loss_sums": self.meter.sums.tolist(),
        }
        return {
            "model": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": self.ranks.gather(of_rank),
        }

    def restore_learned(self, state: dict[str, Any]) -> None:
        """Restore weights, momenta and loss scale; weight decay and momentum come from the config."""
        self.network.load_state_dict(state["model"])
        # Copied into existing memory, whose layout the fused step needs: a checkpoint with another
        # runtime.channels_last has other strides. With optimizer.momentum=0 there are no momenta.
        saved = state["optimizer"]["state"]
        parameters = (each for group in self.optimizer.param_groups for each in group["params"])
        for index, parameter in enumerate(parameters):
            own = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if own is not None:
                momentum = saved.get(index, {}).get("momentum_buffer")
                own.zero_() if momentum is None else own.copy_(momentum)
        if state["scaler"]:  # empty if it was saved without fp16
            self.scaler.load_state_dict(state["scaler"])

    def restore(self, state: dict[str, Any]) -> None:
        """Restore everything on every rank; the number of ranks may have changed."""
        self.restore_learned(state)
        of_ranks = state["ranks"]
        if len(of_ranks) == self.ranks.world_size:
            own = of_ranks[self.ranks.rank]
            sums = own["loss_sums"]
        else:
            own = of_ranks[0]
            all_sums = zip(*(each["loss_sums"] for each in of_ranks), strict=True)
            sums = [sum(values) / len(of_ranks) for values in all_sums]
        self.meter.sums.copy_(torch.tensor(sums))
        torch.set_rng_state(own["rng_cpu"])
        if self.ranks.device.type == "cuda" and own.get("rng_cuda") is not None:
            torch.cuda.set_rng_state(own["rng_cuda"], self.ranks.device)


def build_network(config: ModelConfig, categories: Categories, seed: int) -> tuple[SSD300, str]:
    """Make a network with its initial weights: random by seed, ImageNet's backbone, or a checkpoint's.

    Returns it and a description of where its weights come from.
    Raises UserError if weights don't exist or don't fit, CheckpointError if a file can't be read.
    """
    network, backbone = blank_network(config, categories.num_classes, seed), config.backbone.value
    if config.checkpoint is not None:
        return network, _load_detector(network, backbone, Path(config.checkpoint), categories)
    if config.weights is not None:
        _load_imagenet(network, backbone, config.weights)
        return network, f"{config.weights} (backbone), the rest random, seed {seed}"
    return network, f"random, seed {seed}"


def blank_network(config: ModelConfig, num_classes: int, seed: int) -> SSD300:
    """Make a network with random weights."""
    torch.manual_seed(seed)
    network = SSD300(config.backbone.value, num_classes)
    if config.freeze_batchnorm:
        network.freeze_batchnorm()
    return network


def _load_imagenet(network: SSD300, backbone: str, name: str) -> None:
    """Load model.weights, which is a name of torchvision's or a file, into the backbone."""
    known = {entry.name: entry for entry in torchvision.models.get_model_weights(backbone)}
    fix = f"{backbone} has {' or '.join(known)}; give that, a file that exists, or null to train from scratch"
    require(name in known or Path(name).is_file(), "model.weights", name, fix)
    try:
        if name in known:
            weights = known[name].get_state_dict(progress=False, check_hash=True)
        else:
            weights = load_file(Path(name))
        network.load_imagenet_backbone(weights)
    except OSError as error:
        fix = "download it elsewhere and give model.weights=FILE, or null to train from scratch"
        raise UserError(f"model.weights={name} can't be downloaded ({error}); {fix}") from error
    except ValueError as error:
        raise UserError(f"model.weights={name}: {error}") from error


def _load_detector(network: SSD300, backbone: str, path: Path, categories: Categories) -> str:
    """Load model.checkpoint, without its class heads if it has other classes; return what was loaded.

    Classes are the same if their names are the same, in order. A published checkpoint with 81 classes has
    COCO's; for any other published one only the number can be compared.
    """
    weights = load_weights(path)
    model = weights.network.state_dict()
    require(weights.backbone == backbone, "model.backbone", backbone, f"{path} is a {weights.backbone}")
    trained = weights.categories or (COCO if weights.num_classes == COCO.num_classes else None)
    same_number = weights.num_classes == categories.num_classes
    if same_number and (trained is None or trained.names == categories.names):
        network.load_state_dict(model)
        return str(path)
    kept = {key: value for key, value in model.items() if not key.startswith("logit_heads.")}
    network.load_state_dict(kept, strict=False)  # everything except these heads
    return f"{path}, but for the class heads, which are new: its classes are not those of the data set"
