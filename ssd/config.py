"""The config schema of every script: the keys of conf/, their types, and the values that are allowed."""

import math
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING

from .detect import MAX_DETECTIONS, SHOWN_SCORE
from .errors import UserError, require
from .published import Weights

MINUTES_A_YEAR = 365 * 24 * 60  # longer waits are useless, and could overflow a clock


def default_threads(ranks_on_machine: int = 1) -> int:
    """Divide the cores that this process may use among the machine's ranks: 1 to 8 threads, RECIPE 6."""
    return min(max(len(os.sched_getaffinity(0)) // ranks_on_machine, 1), 8)


def _require_at_least(config: object, section: str, **lowest: int) -> None:
    """Raise UserError unless each of these fields of a section is null or at least its lowest value."""
    for name, limit in lowest.items():
        value = getattr(config, name)
        require(value is None or value >= limit, section + name, value, f"give at least {limit}")


def _require_wait(key: str, minutes: float | None) -> None:
    fix = f"give more than 0 and at most a year's {MINUTES_A_YEAR}"
    require(minutes is None or 0 < minutes <= MINUTES_A_YEAR, key, minutes, fix)


def _filled(config: object, trained: dict[str, Any]) -> dict[str, Any]:
    """Return a section's values, with nulls replaced by the values used in training."""
    return {key: trained.get(key) if value is None else value for key, value in vars(config).items()}


# Sections of train.py's config. Other scripts use some of them too.


class OnBadImage(Enum):
    """What training does about an image file that can't be used: stop, or leave the image out."""

    fail = "fail"
    quarantine = "quarantine"


class Check(Enum):
    """How thoroughly every image file is checked before training; check_dataset.py always uses `full`."""

    off = "off"
    header = "header"
    full = "full"


class Decoder(Enum):
    """Where images are decoded on a machine with GPUs; the rest of the pipeline runs on the GPU."""

    cpu = "cpu"
    gpu = "gpu"


def coco_place(folder: Path, key: str) -> Path:
    """Return the path of a split's images or annotations in COCO's layout; key: such as val_images."""
    split, kind = key.split("_")
    return folder / (f"{split}2017" if kind == "images" else f"annotations/instances_{split}2017.json")


@dataclass
class DataSource:
    """Where a data set is and how it is read. Those of the four paths that are null follow from `path`."""

    path: str | None = None
    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    min_box_px: float = 1.0
    threads: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        _require_at_least(self, "data.", threads=1)
        shortest = self.min_box_px
        require(0 < shortest < math.inf, "data.min_box_px", shortest, "give a size in pixels above 0")

    def locate(self, key: str) -> Path:
        """Return one of the four paths: the value of its own key, else the one that follows from data.path.

        Raises UserError if neither is given.
        """
        given = cast(str | None, getattr(self, key))
        if given is not None:
            return Path(given)
        if self.path is None:
            raise UserError(f"data.path=null: give data.path=DIR in COCO layout, or data.{key}=…")
        return coco_place(Path(self.path), key)


@dataclass
class DataConfig(DataSource):
    """Which images are used, and how they are fed to the network."""

    batch_size: int = 32
    augment: bool = True
    limit: int | None = None
    crowd: bool = True
    decoder: Decoder = Decoder.cpu
    on_bad_image: OnBadImage = OnBadImage.fail
    check: Check = Check.header

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_at_least(self, "data.", batch_size=1, limit=1)


class Backbone(Enum):
    """The torchvision ResNets that can be the detector's backbone."""

    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    resnet152 = "resnet152"


@dataclass
class ModelConfig:
    """The network and its initial weights. weights: a torchvision name, a file, or null."""

    backbone: Backbone = Backbone.resnet50
    weights: str | None = None
    checkpoint: str | None = None
    freeze_batchnorm: bool = False


@dataclass
class OptimizerConfig:
    """SGD. learning_rate is for 32 images a step and scales linearly unless scale_learning_rate is false."""

    learning_rate: float = 2.6e-3
    scale_learning_rate: bool = True
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        rate, momentum, decay = self.learning_rate, self.momentum, self.weight_decay
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "give a finite rate above 0")
        require(0 <= momentum < 1, "optimizer.momentum", momentum, "give a value in [0, 1)")
        require(0 <= decay < math.inf, "optimizer.weight_decay", decay, "give 0 or a finite value above it")


@dataclass
class ScheduleConfig:
    """How long to train, and how the learning rate changes.

    milestones: epochs counted from 0; null: two thirds and five sixths of all epochs, close to the recipe.
    """

    epochs: int = 65
    max_steps: int | None = None
    milestones: list[int] | None = field(default_factory=list)
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require_at_least(self, "schedule.", epochs=1, max_steps=1, warmup_steps=0)
        if self.milestones is None:
            self.milestones = sorted({max(self.epochs * 2 // 3, 1), math.ceil(self.epochs * 5 / 6)})
        rising = all(a < b for a, b in zip([0, *self.milestones], self.milestones, strict=False))
        require(rising, "schedule.milestones", self.milestones, "give rising epochs from 1 on")


class Device(Enum):
    """Where the network runs; auto: cuda if there is a GPU, else cpu."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Number format of the forward pass and activations; weights and loss are always float32."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


@dataclass
class RuntimeConfig:
    """Device and number format. They affect the results only through rounding."""

    device: Device = Device.auto
    precision: Precision = Precision.fp16
    tf32: bool = False
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False


@dataclass
class LoggingConfig:
    """How often losses are read from the device and recorded, and whether report.html is written."""

    every_steps: int = 20
    report: bool = True

    def __post_init__(self) -> None:
        _require_at_least(self, "logging.", every_steps=1)


@dataclass
class EvaluationConfig:
    """When to evaluate: after these epochs (counted from 0), every `every` epochs, and after the last."""

    epochs: list[int] = field(default_factory=list)
    every: int | None = None
    pictures: int = 8
    timeout_minutes: float = 60.0

    def __post_init__(self) -> None:
        require(min(self.epochs, default=0) >= 0, "evaluation.epochs", self.epochs, "give epochs from 0 on")
        _require_at_least(self, "evaluation.", every=1, pictures=0)
        _require_wait("evaluation.timeout_minutes", self.timeout_minutes)

    def due(self, epoch: int) -> bool:
        """Tell whether to evaluate after this epoch."""
        return epoch in self.epochs or (self.every is not None and (epoch + 1) % self.every == 0)


# What happens if a checkpoint can't be written: stop the run, or report it and go on training. Not a class
# statement, because `continue` is a keyword.
OnError = Enum("OnError", {"fail": "fail", "continue": "continue"})


@dataclass
class CheckpointConfig:
    """When to save, in addition to at the end, and how many step_*.pt to keep (in addition to best.pt)."""

    every_epochs: int | None = 1
    every_steps: int | None = None
    keep: int = 3
    on_error: OnError = OnError.fail

    def __post_init__(self) -> None:
        _require_at_least(self, "checkpoint.", every_epochs=1, every_steps=1, keep=1)

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Tell whether to save a checkpoint after this many steps."""
        epochs, position = divmod(step, steps_per_epoch)
        return (self.every_steps is not None and step % self.every_steps == 0) or (
            self.every_epochs is not None and position == 0 and epochs % self.every_epochs == 0
        )


class OnNonfinite(Enum):
    """What to do about a step whose loss or gradient is not finite. The step itself is always skipped."""

    stop = "stop"
    skip = "skip"
    rollback = "rollback"


@dataclass
class TrainingConfig:
    """Safety checks and early stopping. patience: evaluations in a row without a better AP."""

    patience: int | None = None
    on_nonfinite: OnNonfinite = OnNonfinite.stop
    nonfinite_limit: int = 10
    compare_replicas_every: int | None = 1000
    hang_timeout_minutes: float | None = 10.0

    def __post_init__(self) -> None:
        _require_at_least(self, "training.", patience=1, nonfinite_limit=1, compare_replicas_every=1)
        _require_wait("training.hang_timeout_minutes", self.hang_timeout_minutes)


@dataclass
class ResumeConfig:
    """override: keys that may differ from the run's checkpoint. never: start over instead of resuming."""

    override: list[str] = field(default_factory=list)
    never: bool = False


# The scripts.


@dataclass
class TrainConfig:
    """All keys of train.py."""

    name: str = MISSING
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    def __post_init__(self) -> None:
        plain = self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0")
        require(plain, "name", self.name, "give a folder's name: no slash, not empty")
        require(0 <= self.seed < 2**63, "seed", self.seed, "give a whole number from 0 to 2^63 − 1")


@dataclass
class EvaluateDataConfig:
    """Validation data. batch_size null: as in training."""

    path: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    batch_size: int | None = None
    limit: int | None = None
    threads: int | None = None
    cache: str | None = None
    check: Check = Check.header


@dataclass
class EvaluateModelConfig:
    """What the checkpoint is expected to hold."""

    backbone: Backbone | None = None


@dataclass
class EvaluateRuntimeConfig:
    """Device and number format. null: as in training."""

    device: Device = Device.auto
    precision: Precision | None = None
    tf32: bool | None = None
    channels_last: bool | None = None

    def filled_from(self, weights: Weights) -> RuntimeConfig:
        """Fill nulls from the checkpoint's training config; a published one has none and gets float32."""
        trained = weights.config["runtime"] if weights.config else {"precision": "fp32"}
        values = _filled(self, vars(RuntimeConfig()) | trained)
        return RuntimeConfig(**values | {"precision": Precision(values["precision"])})


@dataclass
class EvaluateConfig:
    """All keys of evaluate.py."""

    checkpoint: str = MISSING
    out: str = "evaluation.json"
    detections: str | None = None
    report: str | None = None
    timeout_minutes: float = 60.0
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    model: EvaluateModelConfig = field(default_factory=EvaluateModelConfig)
    runtime: EvaluateRuntimeConfig = field(default_factory=EvaluateRuntimeConfig)

    def __post_init__(self) -> None:
        _require_wait("timeout_minutes", self.timeout_minutes)
        files = [Path(file) for file in (self.out, self.detections, self.report) if file is not None]
        fix = "give each of out, detections and report its own file"
        require(len({*files}) == len(files), "out", self.out, fix)

    def resolve(self, weights: Weights) -> tuple[DataConfig, RuntimeConfig]:
        """Fill nulls from the checkpoint's training config; a published checkpoint has none.

        The paths are filled too, unless data.path is given, or both data.val_images and data.val_annotations.
        Raises UserError if model.backbone is given and differs from the checkpoint's.
        """
        named = self.model.backbone.value if self.model.backbone else weights.backbone
        fix = f"the checkpoint is a {weights.backbone}; leave the key out"
        require(named == weights.backbone, "model.backbone", named, fix)
        trained = weights.config["data"] if weights.config else {}
        taken = {"batch_size": trained.get("batch_size", DataConfig.batch_size)}
        if self.data.path is None and None in (self.data.val_images, self.data.val_annotations):
            taken |= {key: trained.get(key) for key in ("path", "val_images", "val_annotations")}
        return DataConfig(**_filled(self.data, taken)), self.runtime.filled_from(weights)


@dataclass
class PredictConfig:
    """All keys of predict.py. images: a path, folder or glob, or a list of these."""

    checkpoint: str = MISSING
    images: Any = MISSING
    out: str = "predictions"
    threshold: float = SHOWN_SCORE
    max_detections: int = MAX_DETECTIONS
    classes: list[str] | None = None
    batch_size: int = 8
    threads: int | None = None
    runtime: EvaluateRuntimeConfig = field(default_factory=EvaluateRuntimeConfig)

    def __post_init__(self) -> None:
        require(0 <= self.threshold < 1, "threshold", self.threshold, "give a score from 0 to below 1")
        require(self.classes != [], "classes", self.classes, "name at least one, or give null for all")
        require(self.out != "", "out", "''", "name a folder")
        _require_at_least(self, "", max_detections=1, batch_size=1, threads=1)
        self.sources()

    def sources(self) -> list[str]:
        """List the paths, folders and globs in `images`. Raises UserError if one of them isn't text."""
        given = self.images if isinstance(self.images, list) else [self.images]
        # Hydra reads 2017, a possible folder name, as an int; 1e3 and true lose their spelling when parsed.
        usable = given != [] and all(type(each) in (str, int) and each != "" for each in given)
        fix = "give a picture, folder or glob, or a list; quote what isn't text"
        require(usable, "images", self.images, fix)
        return [str(each) for each in given]


class Split(Enum):
    """The part of a data set for training, and the part for evaluation."""

    train = "train"
    val = "val"


@dataclass
class CheckDatasetConfig:
    """All keys of scripts/check_dataset.py, which reads the files themselves and uses no cache."""

    splits: list[Split] = field(default_factory=lambda: [Split.train, Split.val])
    out: str = "dataset_report.json"
    data: DataSource = field(default_factory=DataSource)

    def __post_init__(self) -> None:
        names = [split.value for split in self.splits]
        require(0 < len(names) == len(set(names)), "splits", names, "give [train], [val] or [train,val]")


@dataclass
class ReportConfig:
    """All keys of scripts/report.py."""

    run: str | None = None
    out: str | None = None
