"""Index, order, augmentation and graph put together: batches of training from any step on, and of evaluation.

There is no pipeline state: a batch follows from (seed, step) and the index alone, whatever ran before it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from data.bad_image import REPLACE, find_bad_images, reason_unreadable, stand_in, unreadable
from data.coco import CocoIndex
from data.graph import GraphOptions, encode_path, evaluation_graph, training_graph
from data.order import evaluation_batches, rank_share
from data.step_content import StepContent
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.errors import UserError

WhyBad = Callable[[int], str | None]
"""Of an image, by its place in the index: what is wrong with it, None if nothing is."""


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


class DaliTrainLoader:
    """The ssd.batches.TrainLoader of one rank: endless batches from any step on.

    batch_size: images a rank and step. augment: draw RECIPE 6's augmentations, or feed the whole pictures as
    they are. quarantined: images known to be bad, by id, and why; another takes their place in the batch, and
    that of images which turn out to be unreadable. None: these are an error.
    Raises UserError for a batch size that cannot train, UserError where the images do not fill one step.
    """

    def __init__(
        self,
        index: CocoIndex,
        placement: Placement,
        batch_size: int,
        seed: int,
        augment: bool = True,
        quarantined: Mapping[int, str] | None = None,
    ) -> None:
        if batch_size < 2:
            raise UserError(
                f"data.batch_size={batch_size}: BatchNorm cannot train on the 1×1 map of one image; "
                "give at least 2 images a rank"
            )
        self._index = index
        self._placement = placement
        global_batch_size = batch_size * placement.world_size
        self._content = StepContent(index, global_batch_size, seed, augment)
        places = rank_share(np.arange(global_batch_size), placement.rank, placement.world_size)
        self._own_places: list[int] = places.tolist()
        self._replaces = quarantined is not None
        bad_ids = quarantined or {}
        self._known_bad = {
            int(image): bad_ids[int(index.image_ids[image])]
            for image in np.flatnonzero(np.isin(index.image_ids, [*bad_ids]))
        }
        self._bad_images: dict[int, str] = {}
        self._options = GraphOptions(batch_size, placement.dtype, placement.threads, placement.device_id)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{len(index)} images do not fill one step of {placement.world_size} ranks times "
                f"data.batch_size={batch_size}: give a smaller data.batch_size, fewer ranks or more images"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return self._content.steps_per_epoch

    def contents(self, step: int) -> list[dict[str, Any]]:
        """Describe each image of a step's global batch, rank by rank: what is seen of it, its boxes there.

        Where bad images are replaced, every file of the batch is read to find which of them were.
        """
        images = self._content.images(step)
        if self._replaces:
            images = self._stand_ins(step, range(len(images)), self._judge(step))
        return self._content.describe(step, images)

    def bad_images(self) -> dict[int, str]:
        """Return the images that this rank found unreadable and replaced so far: why, by image id."""
        return dict(self._bad_images)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches of steps first_step, first_step + 1, …, without end.

        The next batches are made in the background meanwhile, over the ends of epochs too.
        Raises UserError naming the image file that cannot be read and its step; the iterator ends with it.
        Where bad images are replaced, the nearest good one before it in the global batch takes the place of
        each, every time anew: what a step is made of depends on its files alone, on no earlier step and not
        on the number of ranks.
        """
        pipeline = self._pipeline(first_step, self._share(first_step))
        for step in itertools.count(first_step):
            try:
                outputs = _run(pipeline, self._placement.device)
            except RuntimeError as error:
                # After an error DALI calls a pipeline no longer valid.
                pipeline = self._pipeline(step, self._readable_share(step, error))
                outputs = _run(pipeline, self._placement.device)
            images, target_offsets, labels = outputs
            yield TrainBatch(images.permute(0, 3, 1, 2), target_offsets, labels)

    def _pipeline(self, step: int, share: list[int]) -> Pipeline:
        """Build the graph of this share of a step and of the steps after it."""
        later = ((step, self._share(step)) for step in itertools.count(step + 1))
        inputs = (self._content.inputs(*each) for each in itertools.chain([(step, share)], later))
        return training_graph(inputs, self._options)

    def _share(self, step: int) -> list[int]:
        """Return this rank's images of a step, others in place of those known to be bad."""
        return self._checked(step, self._known_bad.get)

    def _readable_share(self, step: int, error: RuntimeError) -> list[int]:
        """Return this rank's images of a step that DALI failed on, others in place of the bad ones."""
        why_bad = self._judge(step)
        bad = _name_bad(self._index, self._share(step), why_bad, f"step {step}", error)
        if not self._replaces:
            mend = f"{REPLACE}, or train with data.on_bad_image=quarantine"
            raise unreadable(bad.values(), f"step {step}", mend) from error
        share = self._checked(step, why_bad)
        self._bad_images |= {int(self._index.image_ids[image]): line for image, line in bad.items()}
        return share

    def _checked(self, step: int, why_bad: WhyBad) -> list[int]:
        """Return this rank's stand-ins; raise UserError where no image of the global batch is good."""
        share = self._stand_ins(step, self._own_places, why_bad)
        bad = find_bad_images(self._index, share, why_bad)
        if bad:
            raise unreadable(bad.values(), f"step {step}, all images of all ranks")
        return share

    def _stand_ins(self, step: int, places: Iterable[int], why_bad: WhyBad) -> list[int]:
        batch = self._content.images(step)
        return [stand_in(batch, place, lambda image: why_bad(image) is None) for place in places]

    def _judge(self, step: int) -> WhyBad:
        """Return what tells why an image can't be made part of a step, None if it can; it reads a file once.

        As the step has it: of a file that is cut short, a window above the cut can be read.
        """
        alone = replace(self._options, batch_size=1, threads=1, device_id=None)

        @cache
        def why_bad(image: int) -> str | None:
            if image in self._known_bad:
                return self._known_bad[image]
            return reason_unreadable(training_graph([self._content.inputs(step, [image])], alone))

        return why_bad


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

        Raises UserError naming the image file that cannot be read; the iterator ends with it.
        """

        def why_bad(image: int) -> str | None:
            alone = replace(self._options, batch_size=1, threads=1, device_id=None)
            return reason_unreadable(evaluation_graph([(_paths(self._index, [image]),)], alone))

        pipeline = evaluation_graph(((_paths(self._index, batch),) for batch in self._batches), self._options)
        for batch in self._batches:
            try:
                (images,) = _run(pipeline, self._placement.device)
            except RuntimeError as error:
                bad = _name_bad(self._index, batch, why_bad, "evaluation", error)
                raise unreadable(bad.values(), "evaluation") from error
            rows = slice(batch.start, batch.stop)
            yield EvaluationBatch(
                images=images.permute(0, 3, 1, 2),
                image_ids=self._index.image_ids[rows].tolist(),
                sizes_px=torch.from_numpy(self._index.sizes_px[rows].astype(np.float32)),
            )


def _paths(index: CocoIndex, images: Iterable[int]) -> list[NDArray[np.uint8]]:
    return [encode_path(index.path(image)) for image in images]


def _name_bad(
    index: CocoIndex, images: Sequence[int], why_bad: WhyBad, when: str, error: RuntimeError
) -> dict[int, str]:
    """Return the bad images of a batch that DALI failed on; raise its error if there is none."""
    bad = find_bad_images(index, images, why_bad)
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
