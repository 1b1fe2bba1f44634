"""The batches of one rank: of training from any step on, and of an evaluation.

There is no pipeline state: a batch follows from (seed, step) and the index alone, whatever ran before it.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from data.graph import GraphOptions, encode_path, evaluation_graph, training_graph
from data.index import CocoIndex
from data.pictures import bad_images_error, bad_line, dali_reason, replace_bad, why_it_fails
from data.sampling import BatchPlan, evaluation_batches
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.errors import UserError

REPLACE = "Replace the file, or remove its entry and its boxes from the annotation file"


class DaliTrainLoader:
    """The ssd.batches.TrainLoader of one rank: endless batches from any step on.

    options.batch_size: images a rank and step. known_bad: a line about each image never to be opened, by id;
    these are replaced in their batches, and so are those that DALI fails on. None: such an image is an error.
    Raises UserError for a batch size that cannot train, and where the images do not fill one step.
    """

    def __init__(
        self,
        plan: BatchPlan,
        options: GraphOptions,
        rank: int = 0,
        known_bad: Mapping[int, str] | None = None,
    ) -> None:
        batch_size = options.batch_size
        if batch_size < 2:
            raise UserError(
                f"data.batch_size={batch_size}: BatchNorm cannot train on the 1×1 map of one image; "
                "give at least 2 images a rank"
            )
        if plan.steps_per_epoch == 0:
            raise UserError(
                f"{len(plan.index)} images do not fill one step of {plan.global_batch_size // batch_size} "
                f"ranks times data.batch_size={batch_size}: give a smaller data.batch_size, fewer ranks or "
                "more images"
            )
        self._plan = plan
        self._index = plan.index
        self._options = options
        self._share = slice(rank * batch_size, (rank + 1) * batch_size)  # of the global batch
        self._replaces = known_bad is not None
        self._known_bad = {
            int(np.flatnonzero(plan.index.image_ids == image_id)[0]): line
            for image_id, line in (known_bad or {}).items()
        }
        self._met_bad: dict[int, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return self._plan.steps_per_epoch

    def contents(self, step: int) -> list[dict[str, Any]]:
        """Describe each image of a step's global batch, rank by rank: what is seen of it, its boxes there.

        Where bad images are replaced, every file of the batch is read to find which of them were.
        """
        images = self._plan.images(step)
        if self._replaces:
            images = replace_bad(images, self._find_bad(step, slice(0, len(images))))
        return self._plan.describe(step, images)

    def bad_images(self) -> dict[int, str]:
        """Return the images that DALI failed on and this rank replaced so far: why, by image id."""
        return dict(self._met_bad)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches of steps first_step, first_step + 1, …, without end.

        The next batches are made in the background meanwhile, over the ends of epochs too.
        Raises UserError naming the bad image and its step; the iterator ends with it. Where bad images are
        replaced, that happens each time they are met: what a step consists of depends on its files alone, on
        no earlier step and not on the number of ranks.
        """
        pipeline = self._pipeline(first_step, self._known_bad)
        for step in itertools.count(first_step):
            try:
                outputs = _run(pipeline, self._options)
            except RuntimeError as error:
                # After an error DALI calls a pipeline no longer valid.
                pipeline = self._pipeline(step, self._bad_images_behind(error, step))
                outputs = _run(pipeline, self._options)
            images, target_offsets, labels = outputs
            yield TrainBatch(images.permute(0, 3, 1, 2), target_offsets, labels)

    def _pipeline(self, step: int, bad: Mapping[int, str]) -> Pipeline:
        """Build the graph of a step with these bad images and of the steps after it."""
        first = self._plan.inputs(step, self._images(step, bad))
        later = (
            self._plan.inputs(later, self._images(later, self._known_bad))
            for later in itertools.count(step + 1)
        )
        return training_graph(itertools.chain([first], later), self._options)

    def _images(self, step: int, bad: Mapping[int, str]) -> list[int]:
        """Return this rank's images of a step, the bad ones replaced. Raises UserError where all are bad."""
        images = replace_bad(self._plan.images(step), bad)[self._share]
        lines = [bad[image] for image in images if image in bad]
        if lines:
            raise bad_images_error(f"step {step}, all images of all ranks: DALI cannot read", lines, REPLACE)
        return images

    def _bad_images_behind(self, error: RuntimeError, step: int) -> dict[int, str]:
        """Return the bad images of a step that DALI failed on; raise where none is, or none is replaced."""
        bad = self._find_bad(step, self._share)
        met = {image: bad[image] for image in self._images(step, self._known_bad) if image in bad}
        if not met:
            raise _unexplained(f"step {step}", error) from error
        if not self._replaces:
            fix = f"{REPLACE}, or train with data.on_bad_image=quarantine"
            raise bad_images_error(f"step {step}: DALI cannot read", met.values(), fix) from error
        self._met_bad |= {int(self._index.image_ids[image]): line for image, line in met.items()}
        return bad

    def _find_bad(self, step: int, share: slice) -> dict[int, str]:
        """Return a line about each bad image in a share of a step, and in what is before it up to a good one.

        That one may have to replace what follows. An image is tried as the step has it: of a file that is cut
        short, a window above the cut can be read.
        """
        images = self._plan.images(step)
        images = images[share.stop :] + images[: share.stop]  # before the first comes the last
        alone = replace(self._options, batch_size=1, threads=1, device_id=None)
        bad: dict[int, str] = {}
        for tried, image in enumerate(reversed(images), start=1):
            if image in self._known_bad:
                bad[image] = self._known_bad[image]
            elif why := why_it_fails(training_graph([self._plan.inputs(step, [image])], alone)):
                bad[image] = bad_line(self._index, image, why)
            elif tried >= share.stop - share.start:
                break
        return bad


class DaliEvaluationLoader:
    """The ssd.batches.EvaluationLoader of one rank: whole pictures, each image some rank's exactly once."""

    def __init__(self, index: CocoIndex, options: GraphOptions, rank: int = 0, world_size: int = 1) -> None:
        self._index = index
        self._options = options
        self._batches = evaluation_batches(len(index), options.batch_size, rank, world_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield this rank's batches in file order; the last of all may be smaller.

        Raises UserError naming the bad image; the iterator ends with it.
        """
        pipeline = self._graph(self._batches, self._options)
        for batch in self._batches:
            try:
                (images,) = _run(pipeline, self._options)
            except RuntimeError as error:
                alone = replace(self._options, batch_size=1, threads=1, device_id=None)
                reasons = ((image, why_it_fails(self._graph([[image]], alone))) for image in batch)
                lines = [bad_line(self._index, image, why) for image, why in reasons if why is not None]
                if not lines:
                    raise _unexplained("evaluation", error) from error
                raise bad_images_error("evaluation: DALI cannot read", lines, REPLACE) from error
            rows = slice(batch.start, batch.stop)
            yield EvaluationBatch(
                images=images.permute(0, 3, 1, 2),
                image_ids=self._index.image_ids[rows].tolist(),
                sizes_px=torch.from_numpy(self._index.sizes_px[rows].astype(np.float32)),
            )

    def _graph(self, batches: Iterable[Iterable[int]], options: GraphOptions) -> Pipeline:
        paths = (([encode_path(self._index.path(image)) for image in batch],) for batch in batches)
        return evaluation_graph(paths, options)


def _unexplained(where: str, error: RuntimeError) -> UserError:
    """Return the error of a batch that fails though its files don't; all ranks are to end by it."""
    return UserError(
        f"{where}: DALI fails on a batch though the CPU reads each of its image files by itself: "
        f"{dali_reason(error)}; with data.decoder=gpu give data.decoder=cpu"
    )


def _run(pipeline: Pipeline, options: GraphOptions) -> list[Tensor]:
    """Take the next batch out of a graph without a copy.

    DALI's default executor never writes to an output again while a tensor made of it lives, and hands it over
    on the stream that asks for it, so the host does not wait for the device.
    """
    stream = None if options.device_id is None else torch.cuda.current_stream(options.device_id)
    return [torch.from_dlpack(output.as_tensor()) for output in pipeline.run(stream)]
