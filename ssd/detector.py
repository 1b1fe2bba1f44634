"""A detector that knows its classes' names: it takes pictures and returns boxes in pixels.

ssd.load, torch.hub and predict.py use it. It needs only torch, torchvision, numpy and Pillow. Its imports are
relative, because under torch.hub the package is not called `ssd`.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .boxes import default_boxes
from .categories import COCO, Categories
from .detect import MAX_DETECTIONS, SHOWN_SCORE, Detections, detect
from .errors import UserError, require
from .image import Picture, draw_boxes, normalize, read_picture, squash
from .model import SSD300
from .published import Weights

AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}  # by precision


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found on one picture, best first.

    boxes_ltrb_px: K×4 in pixels of the upright picture, not clipped (RECIPE 7). scores: K. labels: K, from 1.
    names: K, the labels' class names. picture: as given to `predict`.
    """

    boxes_ltrb_px: NDArray[np.float64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: list[str]
    picture: Picture

    def draw(self) -> Image.Image:
        """Return a copy of the picture with boxes, names and scores drawn on it. A file is read again."""
        picture = read_picture(self.picture)
        texts = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores.tolist(), strict=True)]
        draw_boxes(picture, self.boxes_ltrb_px.tolist(), self.labels.tolist(), texts)
        return picture


class Detector(SSD300):
    """An SSD300 that also takes pictures, by `predict`, and images on any device.

    backbone, num_classes: as for SSD300. The state dict is the same as SSD300's.
    categories: what the labels mean. The default is COCO's if num_classes is, else "class 1" and so on.
    precision: of `predict`: fp32 computes in the weights' own type, fp16 and bf16 use autocast.
    """

    def __init__(
        self, backbone: str, num_classes: int, categories: Categories | None = None, precision: str = "fp32"
    ) -> None:
        super().__init__(backbone, num_classes)
        if categories is None and num_classes == COCO.num_classes:
            categories = COCO  # published checkpoints name no classes
        numbers = range(1, num_classes)
        self.categories = categories or Categories(tuple(numbers), tuple(f"class {n}" for n in numbers))
        self.precision = precision

    @classmethod
    def of(cls, weights: Weights, precision: str = "fp32") -> Self:
        """Make a detector with these weights."""
        detector = cls(weights.backbone, weights.num_classes, weights.categories, precision)
        detector.load_state_dict(weights.network.state_dict())
        return detector

    @property
    def category_names(self) -> tuple[str, ...]:
        """The classes' names: label k has category_names[k-1]."""
        return self.categories.names

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Move images N×3×300×300 to the network's device and dtype, then run SSD300 on them."""
        return super().forward(images.to(next(self.parameters())))

    def predict(
        self,
        pictures: Picture | Iterable[Picture],
        threshold: float = SHOWN_SCORE,
        classes: Collection[str] | None = None,
        max_detections: int = MAX_DETECTIONS,
        batch_size: int = 8,
    ) -> Any:
        """Find the objects in one picture, returning a Prediction, or in several, returning a list of them.

        pictures: of any size, each a path, a PIL picture or a uint8 array H×W×3 (RGB). Files are read in
        threads. threshold: scores must be above it, from 0 to below 1. classes: find only these, by name.
        max_detections: keep this many per picture, the best ones. batch_size: pictures per forward pass.
        Raises UserError, a ValueError, if an argument or a picture can't be used or the network's outputs
        are not finite.
        """
        if not isinstance(pictures, list | tuple | Iterator):
            alone: Any = [pictures]
            return self.predict(alone, threshold, classes, max_detections, batch_size)[0]
        require(0 <= threshold < 1, "threshold", threshold, "give a score from 0 to below 1")
        require(max_detections >= 1, "max_detections", max_detections, "give at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "give at least 1")
        labels = self.categories.labels_named([classes] if isinstance(classes, str) else classes)
        given, kept = list(pictures), torch.tensor(sorted(labels))
        found: list[Prediction] = []
        training = self.training
        self.eval()
        try:
            with ThreadPoolExecutor() as pool:
                for start in range(0, len(given), batch_size):
                    batch = given[start : start + batch_size]
                    sizes_px, squashed = zip(*_look_at(batch, start, pool), strict=True)
                    detected = self._detect(squashed, threshold)
                    for picture, size_px, everything in zip(batch, sizes_px, detected, strict=True):
                        best = torch.isin(everything.labels, kept).nonzero()[:max_detections, 0]
                        detections = Detections(*(part[best] for part in everything))
                        found.append(self._prediction(picture, size_px, detections))
        finally:
            self.train(training)
        return found

    @torch.inference_mode()
    def _detect(self, squashed: Sequence[Image.Image], threshold: float) -> list[Detections]:
        """Find the objects of all classes in N pictures already squashed to 300×300."""
        weight = next(self.parameters())
        values = np.stack([np.asarray(picture) for picture in squashed]).astype(np.float32) / 255
        images = normalize(values).to(weight.device)
        if not weight.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous()
        autocast = self.precision != "fp32"
        with torch.autocast(weight.device.type, dtype=AUTOCAST[self.precision], enabled=autocast):
            offsets, logits = self(images)
        if not (offsets.isfinite().all() & logits.isfinite().all()):
            raise UserError(
                f"the network's outputs are not finite in {self.precision}; give precision=fp32 "
                "(runtime.precision=fp32), or another checkpoint if fp32 fails too"
            )
        # Keep all detections: `predict` drops unwanted classes first, then cuts to max_detections. The order
        # is safe because classes don't suppress each other.
        everything = logits.shape[1] * logits.shape[2]
        boxes_cxcywh = default_boxes().to(weight.device)
        return detect(offsets, logits, boxes_cxcywh, threshold, max_detections=everything)

    def _prediction(self, picture: Picture, size_px: tuple[int, int], found: Detections) -> Prediction:
        boxes_ltrb_px = found.boxes.double() * torch.tensor(size_px).repeat(2)
        names = [self.categories.name_of(label) for label in found.labels.tolist()]
        return Prediction(boxes_ltrb_px.numpy(), found.scores.numpy(), found.labels.numpy(), names, picture)


def check_precision(precision: str, device: torch.device, key: str = "precision") -> None:
    """Raise UserError, naming the key, if the precision is unknown or the device does not support it."""
    on_gpu = device.type == "cuda"
    require(precision in AUTOCAST, key, repr(precision), f"give {', '.join(AUTOCAST)}")
    if precision == "fp16" and not on_gpu:
        raise UserError(f"{key}=fp16 needs a GPU; on a CPU give {key}=bf16 or fp32")
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise UserError(f"{key}=bf16: this GPU has none; give {key}=fp16 or fp32")


def _look_at(
    pictures: list[Any], first: int, pool: ThreadPoolExecutor
) -> list[tuple[tuple[int, int], Image.Image]]:
    """Return each picture's upright size and squashed copy. Errors call picture i pictures[first + i]."""
    # Read each object once: Pillow loads pixels lazily, and two threads loading the same one would break.
    distinct = {id(each): (each, f"pictures[{index}]") for index, each in enumerate(pictures, first)}
    looks = dict(zip(distinct, pool.map(_look, distinct.values()), strict=True))
    return [looks[id(each)] for each in pictures]


def _look(named: tuple[Any, str]) -> tuple[tuple[int, int], Image.Image]:
    picture, name = named
    read = read_picture(picture, None if isinstance(picture, str | os.PathLike) else name)
    return read.size, squash(read)
