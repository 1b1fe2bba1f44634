"""Index, order, augmentation and graph put together: batches of training from any step on, and of evaluation.

There is no pipeline state: a batch follows from (seed, step) and the index alone, whatever ran before it.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from data.augment import Augmentation, augment_boxes, draw_augmentation
from data.bad_image import find_bad_images, replace_bad, unreadable
from data.coco import CocoIndex
from data.errors import DatasetError
from data.graph import GraphOptions, TrainingInputs, encode_path, evaluation_graph, training_graph
from data.order import epoch_of, evaluation_batches, global_batch, rank_share, steps_per_epoch
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.config import OnBadImage
from ssd.errors import UserError

MAX_DEFAULT_THREADS = 8
"""Threads a rank takes by default where there are more; one GPU's share in the published recipe."""


@dataclass(frozen=True)
class Placement:
    """Which rank's input is made, where it goes, with how many CPU threads, and the images' number format."""

    rank: int
    world_size: int
    device: torch.device
    threads: int
    dtype: torch.dtype = torch.float32  # or torch.float16

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
    they are. on_bad_image: what a file that cannot be read does.
    Raises UserError for a batch size that cannot train, DatasetError where the images do not fill one step.
    """

    def __init__(
        self,
        index: CocoIndex,
        placement: Placement,
        batch_size: int,
        seed: int,
        augment: bool = True,
        on_bad_image: OnBadImage = OnBadImage.fail,
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
        self._on_bad_image = on_bad_image
        self._bad_images: dict[int, str] = {}
        self._options = GraphOptions(batch_size, placement.dtype, placement.threads, placement.device_id)
        if self.steps_per_epoch == 0:
            raise DatasetError(
                f"{len(index)} images do not fill one step of {placement.world_size} ranks times "
                f"data.batch_size={batch_size}: give a smaller data.batch_size, fewer ranks or more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return steps_per_epoch(len(self._index), self._global_batch_size)

    def contents(self, step: int) -> list[dict[str, Any]]:
        """Describe each image of a step's global batch, rank by rank: what is seen of it, its boxes there."""
        epoch = self._epoch(step)
        return [self._content(epoch, image) for image in self._global_batch(step).tolist()]

    def bad_images(self) -> dict[int, str]:
        """Return the images that this rank had to replace so far (data.on_bad_image): why, by image id."""
        return dict(self._bad_images)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches of steps first_step, first_step + 1, …, without end.

        The next batches are made in the background meanwhile, over the ends of epochs too.
        Raises DatasetError naming the image file that cannot be read and its step; the iterator ends with it.
        Under data.on_bad_image=quarantine the image before it in the batch takes its place instead, each time
        anew: what a step is made of depends on no earlier one.
        """
        inputs = (self._inputs(self._epoch(step), self._share(step)) for step in itertools.count(first_step))
        pipeline = training_graph(inputs, self._options)
        for step in itertools.count(first_step):
            try:
                outputs = _run(pipeline, self._placement.device)
            except RuntimeError as error:
                outputs = self._run_without_bad(step, error)
            images, target_offsets, labels = outputs
            yield TrainBatch(images.permute(0, 3, 1, 2), target_offsets, labels)

    def _run_without_bad(self, step: int, error: RuntimeError) -> list[Tensor]:
        """Make the batch of a step that DALI failed on, as data.on_bad_image has it."""
        share = self._share(step)
        bad = _name_bad(self._index, share, f"step {step}", error)
        replaced = replace_bad(share, bad)
        if self._on_bad_image is OnBadImage.fail or replaced is None:
            raise unreadable(bad.values(), f"step {step}") from error
        self._bad_images |= {int(self._index.image_ids[image]): line for image, line in bad.items()}
        pipeline = training_graph([self._inputs(self._epoch(step), replaced)], self._options)
        return _run(pipeline, self._placement.device)

    def _epoch(self, step: int) -> int:
        return epoch_of(step, len(self._index), self._global_batch_size)

    def _global_batch(self, step: int) -> NDArray[np.int64]:
        return global_batch(step, len(self._index), self._global_batch_size, self._seed)

    def _share(self, step: int) -> list[int]:
        batch = self._global_batch(step)
        images: list[int] = rank_share(batch, self._placement.rank, self._placement.world_size).tolist()
        return images

    def _content(self, epoch: int, image: int) -> dict[str, Any]:
        augmentation = self._augmentation(epoch, image)
        boxes_ltrb, labels = augment_boxes(augmentation, *self._index.boxes_of(image))
        return {
            "image_id": int(self._index.image_ids[image]),
            "file": self._index.path(image),
            "window_ltwh": list(augmentation.window_ltwh),
            "flip": augmentation.flip,
            "boxes_ltrb": boxes_ltrb.tolist(),
            "labels": labels.tolist(),
        }

    def _inputs(self, epoch: int, images: list[int]) -> TrainingInputs:
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

    def __init__(self, index: CocoIndex, placement: Placement, batch_size: int) -> None:
        self._index = index
        self._placement = placement
        self._batches = evaluation_batches(len(index), batch_size, placement.rank, placement.world_size)
        self._options = GraphOptions(batch_size, placement.dtype, placement.threads, placement.device_id)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield this rank's batches in file order; the last of all may be smaller.

        Raises DatasetError naming the image file that cannot be read; the iterator ends with it.
        """
        pipeline = evaluation_graph(((_paths(self._index, batch),) for batch in self._batches), self._options)
        for batch in self._batches:
            try:
                (images,) = _run(pipeline, self._placement.device)
            except RuntimeError as error:
                bad = _name_bad(self._index, batch, "evaluation", error)
                raise unreadable(bad.values(), "evaluation") from error
            rows = slice(batch.start, batch.stop)
            yield EvaluationBatch(
                images=images.permute(0, 3, 1, 2),
                image_ids=self._index.image_ids[rows].tolist(),
                sizes_px=torch.from_numpy(self._index.sizes_px[rows].astype(np.float32)),
            )


def _paths(index: CocoIndex, images: Iterable[int]) -> list[NDArray[np.uint8]]:
    return [encode_path(index.path(image)) for image in images]


def _name_bad(index: CocoIndex, images: Sequence[int], when: str, error: RuntimeError) -> dict[int, str]:
    """Return the bad images of a batch that DALI failed on; raise its error if there is none."""
    bad = find_bad_images(index, images)
    if not bad:
        error.add_note(f"{when}: each of the batch's image files can be read by itself")
        raise error
    return bad


def _run(pipeline: Pipeline, device: torch.device) -> list[Tensor]:
    """Take the next batch out of a graph without a copy.

    DALI's default executor never writes to an output again while a tensor made of it lives, and hands it over
    on the stream that asks for it, so the host does not wait for the device.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return [torch.from_dlpack(output.as_tensor()) for output in pipeline.run(stream)]
