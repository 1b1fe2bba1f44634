"""What a step of training is made of: (seed, step) → images, draws for each, what the graph is fed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.augment import Augmentation, augment_boxes, draw_augmentation
from data.coco import CocoIndex
from data.graph import TrainingInputs, encode_path, window_of_pixels
from data.order import epoch_of, global_batch, steps_per_epoch


class StepContent:
    """The steps of a data set under a seed; nothing here reads a picture or has state.

    global_batch_size: images a step, over all ranks. augment: draw RECIPE 6's augmentations, or take the
    whole pictures as they are. Images are named by their place in the index.
    """

    def __init__(self, index: CocoIndex, global_batch_size: int, seed: int, augment: bool) -> None:
        self._index = index
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._augment = augment

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return steps_per_epoch(len(self._index), self._global_batch_size)

    def images(self, step: int) -> list[int]:
        """Return the images of a step's global batch, rank by rank."""
        batch = global_batch(step, len(self._index), self._global_batch_size, self._seed)
        images: list[int] = batch.tolist()
        return images

    def describe(self, step: int, images: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is seen of each image in a step, and its boxes there, as plain values."""
        return [self._describe(step, image) for image in images]

    def inputs(self, step: int, images: Sequence[int]) -> TrainingInputs:
        """Return what the graph is fed to make these images as a step has them."""
        augmentations = [self._augmentation(step, image) for image in images]
        windows_ltwh = [
            window_of_pixels(augmentation.window_ltwh, self._index.sizes_px[image].tolist())
            for augmentation, image in zip(augmentations, images, strict=True)
        ]
        boxes = [
            augment_boxes(augmentation, *self._index.boxes_of(image))
            for augmentation, image in zip(augmentations, images, strict=True)
        ]
        return TrainingInputs(
            paths=[encode_path(self._index.path(image)) for image in images],
            window_start=np.array([window[:2] for window in windows_ltwh], dtype=np.float32),
            window_size=np.array([window[2:] for window in windows_ltwh], dtype=np.float32),
            flip=np.array([each.flip for each in augmentations], dtype=np.int32),
            hue=np.array([each.hue for each in augmentations], dtype=np.float32),
            saturation=np.array([each.saturation for each in augmentations], dtype=np.float32),
            brightness=np.array([each.brightness for each in augmentations], dtype=np.float32),
            contrast=np.array([each.contrast for each in augmentations], dtype=np.float32),
            boxes_ltrb=[boxes_ltrb for boxes_ltrb, _ in boxes],
            labels=[labels for _, labels in boxes],
        )

    def _describe(self, step: int, image: int) -> dict[str, Any]:
        augmentation = self._augmentation(step, image)
        boxes_ltrb, labels = augment_boxes(augmentation, *self._index.boxes_of(image))
        return {
            "image_id": int(self._index.image_ids[image]),
            "file": self._index.path(image),
            "window_ltwh": list(augmentation.window_ltwh),
            "flip": augmentation.flip,
            "boxes_ltrb": boxes_ltrb.tolist(),
            "labels": labels.tolist(),
        }

    def _augmentation(self, step: int, image: int) -> Augmentation:
        if not self._augment:
            return Augmentation()
        boxes_ltrb, _ = self._index.boxes_of(image)
        epoch = epoch_of(step, len(self._index), self._global_batch_size)
        return draw_augmentation(boxes_ltrb, self._seed, epoch, image)
