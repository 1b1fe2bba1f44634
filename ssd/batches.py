"""The interface between the input pipeline and the trainer; neither knows anything else of the other."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

# For RGB values in [0, 1] (RECIPE 1).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TrainBatch:
    """One rank's share of a global training batch.

    images: N×3×300×300, ImageNet-normalized, float16 or float32, channels last in memory.
    target_offsets: N×A×4 float32, the offsets to predict; 0 where the label is 0.
    labels: N×A int64, 0 is background.
    """

    images: Tensor
    target_offsets: Tensor
    labels: Tensor


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch of evaluation images.

    images: N×3×300×300 as in TrainBatch; the whole picture, stretched to 300×300.
    image_ids: N ids from the annotation file.
    sizes_px: N×2 float32, (width, height) of the original pictures, on the CPU.
    """

    images: Tensor
    image_ids: list[int]
    sizes_px: Tensor


class TrainLoader(Protocol):
    """Training input, a function of the step only."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of full global batches in one pass over the data."""

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches for steps first_step, first_step + 1, …, endlessly."""

    def contents(self, step: int) -> list[dict[str, Any]]:
        """Describe each image of a step's global batch in rank order, as plain values, `image_id` first."""

    def bad_images(self) -> dict[int, str]:
        """Return the images that this rank has replaced so far, as image id → reason."""


class EvaluationLoader(Protocol):
    """This rank's part of an evaluation: each image goes to exactly one rank, once."""

    def __iter__(self) -> Iterator[EvaluationBatch]: ...

    def __len__(self) -> int:
        """Number of batches that this rank gets."""
