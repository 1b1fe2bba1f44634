"""The typed schema of conf/evaluate.yaml, and how a checkpoint fills in what it leaves open."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ssd.config import Backbone, Check, DataConfig, Device, Precision, RuntimeConfig, require, require_wait
from ssd.weights import Weights


@dataclass
class EvaluateDataConfig:
    """Validation pictures; batch_size null is as in training."""

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
    """What the checkpoint should be."""

    backbone: Backbone | None = None


@dataclass
class EvaluateRuntimeConfig:
    """The machine's side; null is as in training."""

    device: Device = Device.auto
    precision: Precision | None = None
    tf32: bool | None = None
    channels_last: bool | None = None

    def as_trained(self, weights: Weights) -> RuntimeConfig:
        """Fill what is null from the training config in the checkpoint; a published one has none: float32."""
        trained = (weights.config or {"runtime": {"precision": "fp32"}})["runtime"]
        runtime = {key: value for key, value in vars(self).items() if value is not None}
        runtime.setdefault("precision", Precision(trained["precision"]))
        for key in ("tf32", "channels_last"):
            runtime.setdefault(key, trained.get(key, getattr(RuntimeConfig, key)))
        return RuntimeConfig(**runtime)


@dataclass
class EvaluateConfig:
    """Everything that evaluate.py reads."""

    checkpoint: str = MISSING
    out: str = "evaluation.json"
    timeout_minutes: float = 60.0
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    model: EvaluateModelConfig = field(default_factory=EvaluateModelConfig)
    runtime: EvaluateRuntimeConfig = field(default_factory=EvaluateRuntimeConfig)

    def __post_init__(self) -> None:
        """Check the number."""
        require_wait("timeout_minutes", self.timeout_minutes)

    def resolve(self, weights: Weights) -> tuple[DataConfig, RuntimeConfig]:
        """Fill what is null from the training config in the checkpoint.

        A published checkpoint has none: float32, 32 images a batch.
        Raises ConfigError where model.backbone is given and another than the checkpoint's.
        """
        given = self.model.backbone
        require(
            given is None or given.value == weights.backbone,
            "model.backbone",
            given and given.value,
            f"the checkpoint is a {weights.backbone}; leave the key out",
        )
        trained = (weights.config or {"data": {}})["data"]
        data = {key: value for key, value in vars(self.data).items() if value is not None}
        data.setdefault("batch_size", trained.get("batch_size", DataConfig.batch_size))
        return DataConfig(**data), self.runtime.as_trained(weights)
