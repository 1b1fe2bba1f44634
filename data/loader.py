"""The batches of one rank: for training from any step on, and for an evaluation.

There is no pipeline state: a batch depends on (seed, step) and the index only, not on what ran before it.
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
from data.pictures import bad_images_error, bad_line, dali_reason
from data.sampling import BatchPlan, evaluation_batches
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.errors import UserError

REPLACE = "Replace the file, or remove its entry and its boxes from the annotation file"


class DaliTrainLoader:
    """The ssd.batches.TrainLoader of one rank: endless batches from any step on.

    options.batch_size: images per rank and step. known_bad: by id, a line about each image that must not be
    opened. These images, and images that DALI fails on, are replaced in their batches; with None they are an
    error. Raises UserError for a batch size that can't train, or if the images don't fill one step.
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
        self._alone = replace(options, batch_size=1, threads=1, device_id=None)  # see _why_it_fails
        self._share = range(rank * batch_size, (rank + 1) * batch_size)  # of the global batch
        self._known_bad = known_bad
        self._met_bad: dict[int, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in one pass over the data."""
        return self._plan.steps_per_epoch

    def contents(self, step: int) -> list[dict[str, Any]]:
        """Describe each image of a step's global batch, rank by rank: its visible part and the boxes there.

        If bad images are replaced, every file of the batch is read to find out which ones were.
        """
        batch = range(self._plan.global_batch_size)
        images, _ = self._images(step, batch, read=self._known_bad is not None)
        return self._plan.describe(step, images)

    def bad_images(self) -> dict[int, str]:
        """Return why this rank has replaced images that DALI failed on, by image id."""
        return dict(self._met_bad)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Yield this rank's batches for steps first_step, first_step + 1, …, without end.

        The next batches are prepared in the background, across epochs too.
        Raises UserError with the bad image and its step, after which the iterator is exhausted. If bad images
        are replaced, that is decided anew in each step: the content of a step depends on its files only, not
        on earlier steps or the number of ranks.
        """
        graph = self._graph(first_step, self._expected(first_step))
        for step in itertools.count(first_step):
            try:
                outputs = _run(graph, self._options)
            except RuntimeError as error:
                # DALI says a pipeline is invalid after an error.
                graph = self._graph(step, self._without_bad(step, error))
                outputs = _run(graph, self._options)
            images, target_offsets, labels = outputs
            yield TrainBatch(images.permute(0, 3, 1, 2), target_offsets, labels)

    def _graph(self, step: int, images: list[int]) -> Pipeline:
        """Build the graph for a step with these images, and for the steps after it."""
        first = self._plan.inputs(step, images)
        later = (self._plan.inputs(later, self._expected(later)) for later in itertools.count(step + 1))
        return training_graph(itertools.chain([first], later), self._options)

    def _expected(self, step: int) -> list[int]:
        """Return this rank's images for a step, assuming that DALI doesn't fail on it."""
        return self._images(step, self._share, read=False)[0]

    def _without_bad(self, step: int, error: RuntimeError) -> list[int]:
        """Replace the bad images of a failed step. Raises UserError if none is bad or replaceable."""
        images, bad = self._images(step, self._share, read=True)
        met = {image: bad[image] for image in self._expected(step) if image in bad}
        if not met or self._known_bad is None:
            fix = f"{REPLACE}, or train with data.on_bad_image=quarantine"
            raise _failure(f"step {step}", error, [*met.values()], fix) from error
        self._met_bad |= {int(self._index.image_ids[image]): line for image, line in met.items()}
        return images

    def _images(self, step: int, share: range, read: bool) -> tuple[list[int], dict[int, str]]:
        """Return a share of a step's images with bad ones replaced, and a line about each bad one.

        A bad image is replaced by the nearest good one before it in the global batch, which wraps around. So
        the global batch is the same for any number of ranks. Raises UserError if all images are bad.
        read: try to read each image the way the step does: of a file that is cut short, a window above the
        cut is readable. If False, only known bad images are bad.
        """
        batch = self._plan.images(step)
        reasons: dict[int, str | None] = {}
        images = []
        for position in share:
            for image in (batch[position - back] for back in range(len(batch))):
                if image not in reasons:
                    reasons[image] = self._why_bad(step, image, read)
                if reasons[image] is None:
                    images.append(image)
                    break
            else:
                what = f"step {step}, all images of all ranks: DALI cannot read"
                raise bad_images_error(what, filter(None, reasons.values()), REPLACE)
        return images, {image: why for image, why in reasons.items() if why is not None}

    def _why_bad(self, step: int, image: int, read: bool) -> str | None:
        known = (self._known_bad or {}).get(int(self._index.image_ids[image]))
        if known is not None or not read:
            return known
        graph = training_graph([self._plan.inputs(step, [image])], self._alone)
        return _why_it_fails(graph, self._index, image)


class DaliEvaluationLoader:
    """The ssd.batches.EvaluationLoader of one rank: whole pictures, each on exactly one rank."""

    def __init__(self, index: CocoIndex, options: GraphOptions, rank: int = 0, world_size: int = 1) -> None:
        self._index = index
        self._options = options
        self._alone = replace(options, batch_size=1, threads=1, device_id=None)  # see _why_it_fails
        self._batches = evaluation_batches(len(index), options.batch_size, rank, world_size)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """Yield this rank's batches in file order; the very last one may be smaller.

        Raises UserError with the bad image, after which the iterator is exhausted.
        """
        graph = self._graph(self._batches, self._options)
        for batch in self._batches:
            try:
                (images,) = _run(graph, self._options)
            except RuntimeError as error:
                graphs = ((image, self._graph([[image]], self._alone)) for image in batch)
                reasons = (_why_it_fails(graph, self._index, image) for image, graph in graphs)
                raise _failure("evaluation", error, [*filter(None, reasons)], REPLACE) from error
            rows = slice(batch.start, batch.stop)
            yield EvaluationBatch(
                images=images.permute(0, 3, 1, 2),
                image_ids=self._index.image_ids[rows].tolist(),
                sizes_px=torch.from_numpy(self._index.sizes_px[rows].astype(np.float32)),
            )

    def _graph(self, batches: Iterable[Iterable[int]], options: GraphOptions) -> Pipeline:
        paths = (([encode_path(self._index.path(image)) for image in batch],) for batch in batches)
        return evaluation_graph(paths, options)


def _why_it_fails(graph: Pipeline, index: CocoIndex, image: int) -> str | None:
    """Run the graph of a single image; return a line about the image if DALI fails.

    The error of a batch names the operator, but not always the file. The graph runs on the CPU: after a
    failure on a GPU, the GPU can't be trusted to judge the next file.
    """
    try:
        graph.run()
    except RuntimeError as error:
        return bad_line(index, image, dali_reason(error))
    return None


def _failure(where: str, error: RuntimeError, bad: list[str], fix: str) -> UserError:
    """Return the error for a batch that DALI failed on. bad: lines about its bad images."""
    if bad:
        return bad_images_error(f"{where}: DALI cannot read", bad, fix)
    return UserError(
        f"{where}: DALI fails on a batch though the CPU reads each of its image files by itself: "
        f"{dali_reason(error)}; with data.decoder=gpu give data.decoder=cpu"
    )


def _run(pipeline: Pipeline, options: GraphOptions) -> list[Tensor]:
    """Take the next batch from a graph without copying it.

    DALI's default executor doesn't reuse an output while a tensor made from it is alive, and it orders the
    output on the caller's stream, so the host doesn't wait for the device.
    """
    stream = None if options.device_id is None else torch.cuda.current_stream(options.device_id)
    return [torch.from_dlpack(output.as_tensor()) for output in pipeline.run(stream)]
