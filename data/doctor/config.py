"""The typed schema of conf/check_dataset.yaml."""

from dataclasses import dataclass, field
from enum import Enum

from data.loader import default_threads
from ssd.config import DataConfig, require


class Split(Enum):
    """What a data set is trained on, and what it is evaluated on."""

    train = "train"
    val = "val"


@dataclass
class CheckDataConfig:
    """Where the data set lies; the keys are train.py's and mean the same."""

    path: str | None = None
    train_images: str | None = None
    train_annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    min_box_px: float = 1.0
    threads: int | None = None
    cache: str | None = None

    def as_in_training(self) -> DataConfig:
        """Return the config that training would take. Raises ConfigError for a value that makes no sense."""
        return DataConfig(**vars(self))

    @property
    def workers(self) -> int:
        """Threads that read pictures."""
        return self.threads or default_threads(ranks_on_machine=1)


@dataclass
class CheckDatasetConfig:
    """Everything that scripts/check_dataset.py reads."""

    splits: list[Split] = field(default_factory=lambda: [Split.train, Split.val])
    out: str = "dataset_report.json"
    data: CheckDataConfig = field(default_factory=CheckDataConfig)

    def __post_init__(self) -> None:
        """Check the list, and the numbers as training does."""
        names = [split.value for split in self.splits]
        require(0 < len(names) == len(set(names)), "splits", names, "give [train], [val] or [train,val]")
        self.data.as_in_training()
