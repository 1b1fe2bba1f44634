"""Index, order, augmentation and graph put together: batches of training from any step on, and of evaluation.

There is no pipeline state: a batch follows from (seed, step) and the index alone, whatever ran before it.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from data.augment import Augmentation, augment_boxes, draw_augmentation
from data.bad_image import find_bad_images
from data.coco import CocoIndex
from data.errors import DatasetError
from data.graph import GraphOptions, TrainingInputs, encode_path, evaluation_graph, training_graph
from data.order import epoch_of, evaluation_batches, global_batch, rank_share, steps_per_epoch
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.errors import UserError

MAX_DEFAULT_THREADS = 8
"""Threads a rank takes by default where there are more; one GPU's share in the published recipe."""


@dataclass(frozen=True)
class Placement:
    """Which rank's input is made, where it goes, and with how many CPU threads."""

    rank: int
    world_size: int
    device: torch.device
    threads: int

    @property
    def device_id(self) -> int | None:
        """The GPU's number, None on a CPU."""
        if self.device.type == "cpu":
            return None
        return torch.cuda.current_device() if self.device.index is None else self.device.index


def default_threads(ranks_on_machine: int) -> int:
    """Share the cores that this process may use out among the machine's ranks: 1 … MAX_DEFAULT_THREADS."""
    return min(max(len(os.sched_getaffinity(0)) // ranks_on_machine, 1), MAX_DEFAULT_THREADS)


class DaliTrainLoader:
    """The ssd.batches.TrainLoader of one rank: endless batches from any step on.

    batch_size: images a rank and step. augment: draw RECIPE 6's augmentations, or feed the whole pictures as
    they are. dtype: of the images, torch.float32 or torch.float16.
    Raises UserError for a batch size that cannot train, DatasetError where the images do not fill one step.
    """

    def __init__(
        self,
        index: CocoIndex,
        placement: Placement,
        batch_size: int,
        seed: int,
        augment: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 2:
            raise UserError(
                f"data.batch_size={batch_size}: BatchNorm cannot train on the 1×1 map of one image; "
                "give at least 2 images a rank"
            )
        self._index = index
        self._placement = placement
        self._global_batch_size = batch_size * placement.world_size
        self._seed = seed
        self._augment = augment
        self._options = GraphOptions(batch_size, dtype, placement.threads, placement.device_id)
        if self.steps_per_epoch == 0:
            raise DatasetError(
                f"{len(index)} images do not fill one step of {placement.world_size} ranks times "
                f"data.batch_size={batch_size}: give a smaller data.batch_size, fewer ranks or more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return steps_per_epoch(len(self._index), self._global_batch_size)

    def image_ids(self, step: int) -> list[int]:
        """List the ids of the global batch of a step, rank by rank."""
        ids: list[int] = self._index.image_ids[self._global_batch(step)].tolist()
        return ids

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches of steps first_step, first_step + 1, …, without end.

        The next batches are made in the background meanwhile, over the ends of epochs too.
        Raises DatasetError naming the image file that cannot be read and its step; the iterator ends with it.
        """
        pipeline = training_graph(map(self._inputs, itertools.count(first_step)), self._options)
        for step in itertools.count(first_step):
            images, target_offsets, labels = _run(
                pipeline, self._placement.device, self._index, self._share(step), f"step {step}"
            )
            yield TrainBatch(images.permute(0, 3, 1, 2), target_offsets, labels)

    def _global_batch(self, step: int) -> NDArray[np.int64]:
        return global_batch(step, len(self._index), self._global_batch_size, self._seed)

    def _share(self, step: int) -> list[int]:
        batch = self._global_batch(step)
        images: list[int] = rank_share(batch, self._placement.rank, self._placement.world_size).tolist()
        return images

    def _inputs(self, step: int) -> TrainingInputs:
        epoch = epoch_of(step, len(self._index), self._global_batch_size)
        images = self._share(step)
        augmentations = [self._augmentation(epoch, image) for image in images]
        boxes = [
            augment_boxes(augmentation, *self._index.boxes_of(image))
            for augmentation, image in zip(augmentations, images, strict=True)
        ]
        return TrainingInputs(
            paths=_paths(self._index, images),
            window_start=np.array([each.window_ltwh[:2] for each in augmentations], dtype=np.float32),
            window_size=np.array([each.window_ltwh[2:] for each in augmentations], dtype=np.float32),
            flip=np.array([each.flip for each in augmentations], dtype=np.int32),
            hue=np.array([each.hue for each in augmentations], dtype=np.float32),
            saturation=np.array([each.saturation for each in augmentations], dtype=np.float32),
            brightness=np.array([each.brightness for each in augmentations], dtype=np.float32),
            contrast=np.array([each.contrast for each in augmentations], dtype=np.float32),
            boxes_ltrb=[boxes_ltrb for boxes_ltrb, _ in boxes],
            labels=[labels for _, labels in boxes],
        )

    def _augmentation(self, epoch: int, image: int) -> Augmentation:
        if not self._augment:
            return Augmentation()
        boxes_ltrb, _ = self._index.boxes_of(image)
        return draw_augmentation(boxes_ltrb, self._seed, epoch, image)


class DaliEvaluationLoader:
    """The ssd.batches.EvaluationLoader of one rank: whole pictures, each image some rank's exactly once."""

    def __init__(
        self, index: CocoIndex, placement: Placement, batch_size: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self._index = index
        self._placement = placement
        self._batches = evaluation_batches(len(index), batch_size, placement.rank, placement.world_size)
        self._options = GraphOptions(batch_size, dtype, placement.threads, placement.device_id)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield this rank's batches in file order; the last of all may be smaller.

        Raises DatasetError naming the image file that cannot be read; the iterator ends with it.
        """
        pipeline = evaluation_graph(((_paths(self._index, batch),) for batch in self._batches), self._options)
        for batch in self._batches:
            (images,) = _run(pipeline, self._placement.device, self._index, batch, "evaluation")
            rows = slice(batch.start, batch.stop)
            yield EvaluationBatch(
                images=images.permute(0, 3, 1, 2),
                image_ids=self._index.image_ids[rows].tolist(),
                sizes_px=torch.from_numpy(self._index.sizes_px[rows].astype(np.float32)),
            )


def _paths(index: CocoIndex, images: Iterable[int]) -> list[NDArray[np.uint8]]:
    return [encode_path(index.path(image)) for image in images]


def _run(
    pipeline: Pipeline, device: torch.device, index: CocoIndex, images: Sequence[int], when: str
) -> list[Tensor]:
    """Take the next batch out of a graph without a copy; name the file where it fails.

    DALI's default executor never writes to an output again while a tensor made of it lives, and hands it over
    on the stream that asks for it, so the host does not wait for the device.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    try:
        outputs = pipeline.run(stream)
    except RuntimeError as error:
        bad_images = find_bad_images(index, images, when)
        if bad_images is None:
            error.add_note(f"{when}: each of the batch's image files can be read by itself")
            raise
        raise bad_images from error
    return [torch.from_dlpack(output.as_tensor()) for output in outputs]
