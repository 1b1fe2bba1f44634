"""The content of a training step: (seed, step) → images, random draws, and the inputs of the graph.

Nothing here has state or reads a picture, so any step can be computed directly. An image is identified by its
position in the cleaned index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.augment import Augmentation, augment_boxes, draw_augmentation
from data.graph import TrainingInputs, encode_path, window_of_pixels
from data.index import CocoIndex

ORDER_STREAM = 0
"""The random stream of an epoch's order; image i draws from stream i + 1."""

DRAWS_AT_ONCE = 45
"""Flip, colour and eight windows (data.augment): enough for nine images in ten."""


def raw_draws(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit integers that depend on (seed, epoch, stream) only.

    This is the input's only source of randomness. Philox is counter-based: the seed is its key, and epoch and
    stream are words of its counter, so any draw can be computed directly and no two streams overlap. Of
    NumPy's generators, only the raw output is guaranteed to be the same bits in every version.
    """
    return _philox(seed, epoch, stream).random_raw(count)


def uniform_draws(seed: int, epoch: int, stream: int) -> Iterator[float]:
    """Yield raw_draws without end, each as a float in [0, 1)."""
    philox = _philox(seed, epoch, stream)
    while True:
        draws = philox.random_raw(DRAWS_AT_ONCE)
        # The upper 53 bits fill a double's significand: uniform, and the same on every machine.
        yield from ((draws >> np.uint64(11)) * np.float64(2.0**-53)).tolist()


def _philox(seed: int, epoch: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=seed, counter=[0, stream, epoch, 0])


@lru_cache(maxsize=2)  # all steps of an epoch share an order; two, because prefetching crosses epochs
def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the image order of an epoch, a read-only permutation of 0 … images - 1.

    It sorts one 64-bit draw per image: a stable sort of raw draws is the same in every NumPy version;
    Generator.permutation is not.
    """
    order = np.argsort(raw_draws(seed, epoch, ORDER_STREAM, images), kind="stable")
    order.flags.writeable = False
    return order


def evaluation_batches(images: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """List a rank's evaluation batches: each image exactly once over all ranks, in file order.

    The batches are formed first and then dealt to the ranks in turn, so a batch is the same for every world
    size. The last one may be smaller, and a rank may get none.
    """
    batches = [range(first, min(first + batch_size, images)) for first in range(0, images, batch_size)]
    return batches[rank::world_size]


@dataclass(frozen=True)
class BatchPlan:
    """The global batches of a data set for a given seed.

    global_batch_size: images per step over all ranks. augment: draw RECIPE 6's augmentations; if False, use
    whole pictures unchanged.
    """

    index: CocoIndex
    global_batch_size: int
    seed: int
    augment: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one pass over the data; an incomplete last one is dropped (RECIPE 9)."""
        return len(self.index) // self.global_batch_size

    def images(self, step: int) -> list[int]:
        """Return the images of a step's global batch, rank by rank."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.global_batch_size
        order = epoch_order(len(self.index), self.seed, epoch)
        images: list[int] = order[first : first + self.global_batch_size].tolist()
        return images

    def describe(self, step: int, images: Sequence[int]) -> list[dict[str, Any]]:
        """Return the visible part of each image in a step, and its boxes there, as plain values."""
        return [
            {
                "image_id": int(self.index.image_ids[image]),
                "file": self.index.path(image),
                "window_ltwh": list(augmentation.window_ltwh),
                "flip": augmentation.flip,
                "boxes_ltrb": boxes_ltrb.tolist(),
                "labels": labels.tolist(),
            }
            for image, augmentation, boxes_ltrb, labels in zip(
                images, *self._augmented(step, images), strict=True
            )
        ]

    def inputs(self, step: int, images: Sequence[int]) -> TrainingInputs:
        """Return the graph's inputs for these images in a step."""
        augmentations, boxes_ltrb, labels = self._augmented(step, images)
        windows_ltwh = [
            window_of_pixels(each.window_ltwh, self.index.sizes_px[image].tolist())
            for image, each in zip(images, augmentations, strict=True)
        ]
        return TrainingInputs(
            paths=[encode_path(self.index.path(image)) for image in images],
            window_start=np.array([window[:2] for window in windows_ltwh], dtype=np.float32),
            window_size=np.array([window[2:] for window in windows_ltwh], dtype=np.float32),
            flip=np.array([each.flip for each in augmentations], dtype=np.int32),
            hue=np.array([each.hue for each in augmentations], dtype=np.float32),
            saturation=np.array([each.saturation for each in augmentations], dtype=np.float32),
            brightness=np.array([each.brightness for each in augmentations], dtype=np.float32),
            contrast=np.array([each.contrast for each in augmentations], dtype=np.float32),
            boxes_ltrb=boxes_ltrb,
            labels=labels,
        )

    def _augmented(
        self, step: int, images: Sequence[int]
    ) -> tuple[list[Augmentation], list[NDArray[np.float32]], list[NDArray[np.int32]]]:
        """Return each image's augmentation in a step, and its augmented boxes and labels."""
        boxes_ltrb, labels = zip(*(self.index.boxes_of(image) for image in images), strict=True)
        if self.augment:
            epoch = step // self.steps_per_epoch
            augmentations = [
                draw_augmentation(boxes, uniform_draws(self.seed, epoch, image + 1))
                for image, boxes in zip(images, boxes_ltrb, strict=True)
            ]
        else:
            augmentations = [Augmentation()] * len(images)
        return augmentations, *augment_boxes(augmentations, boxes_ltrb, labels)
