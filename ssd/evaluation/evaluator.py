"""How is a network evaluated? Every image once, on any number of ranks: numbers, a json report, pictures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ssd.batches import EvaluationBatch, EvaluationLoader
from ssd.boxes import default_boxes
from ssd.categories import Categories
from ssd.checkpoint import package_versions
from ssd.cli import writing
from ssd.console import RunConsole
from ssd.detect import IOU_THRESHOLD, MAX_DETECTIONS, SCORE_THRESHOLD, SHOWN_SCORE, Detections, detect
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.evaluation.coco import RESULT, Scored, numbers_of, score
from ssd.image import captioned, draw_boxes, grid, read_picture
from ssd.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """COCO's numbers and the detections they were computed from, on every rank.

    detections: an array of RESULT, sorted by image. scored: the matches, for errors.explain; only on rank 0.
    """

    numbers: dict[str, float]
    detections: NDArray[np.void]
    scored: Scored | None

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know."""
        none = f"No detection scored above {SCORE_THRESHOLD}, so every number is 0 (early in training)."
        return [] if len(self.detections) or max(self.numbers.values()) > 0 else [none]


@dataclass(frozen=True)
class Evaluator:
    """Scores a network on one validation set: `detect` on every rank, then `score` on every rank.

    image_ids: the images to score, over all ranks; None for all images of the annotation file.
    images, images_without_truth: how many images are scored, and how many of them have no box.
    timeout: how long the other ranks wait for rank 0's numbers.
    """

    loader: EvaluationLoader
    annotation_file: Path
    image_ids: list[int] | None
    images: int
    images_without_truth: int
    categories: Categories
    timeout: timedelta

    def detect(
        self, network: nn.Module, runtime: Runtime, ranks: Ranks, console: RunConsole
    ) -> Iterator[NDArray[np.void]]:
        """Yield the detections of this rank's batches, arrays of RESULT.

        Every rank yields equally often (empty arrays once it has no batch left), so that the ranks can
        communicate between two rounds. Raises UserError on all ranks if one rank can't read a batch or the
        network's outputs are not finite. The network is in evaluation mode during the iteration and gets its
        previous mode back at the end.
        """
        boxes = default_boxes().to(runtime.device)
        batches = iter(self.loader)
        rounds = ranks.highest(len(self.loader))
        training = network.training
        network.eval()
        try:
            with console.counting(rounds, f"evaluating {self.images} images") as count:
                for _ in range(rounds):
                    yield ranks.on_all(lambda: self._detect(next(batches, None), network, runtime, boxes))
                    count(1)
        finally:
            network.train(training)

    @torch.inference_mode()
    def _detect(
        self, batch: EvaluationBatch | None, network: nn.Module, runtime: Runtime, boxes: Tensor
    ) -> NDArray[np.void]:
        if batch is None:
            return np.empty(0, RESULT)
        with runtime.autocast():
            offsets, logits = network(runtime.arrange(batch.images))
        finite = offsets.isfinite().all() & logits.isfinite().all()
        rows = result_rows(batch, detect(offsets, logits, boxes), self.categories)
        if not finite:  # checked only now: result_rows has already waited for the device
            raise UserError(
                f"the network's outputs are not finite in {runtime.precision.value}; give "
                "runtime.precision=fp32, or another checkpoint if they are not finite in fp32 either"
            )
        return rows

    def score(self, rows: list[NDArray[np.void]], ranks: Ranks) -> Evaluation:
        """Score what `detect` yielded on all ranks. Rank 0 computes the numbers while the others wait."""
        nothing = np.empty(0, RESULT)
        gathered = ranks.gather(np.concatenate([nothing, *rows]))
        detections = np.concatenate([nothing, *gathered])
        # Sorted by image, so that tied scores have the same order whichever rank found them.
        detections = detections[np.argsort(detections["image_id"], kind="stable")]
        scored = None

        def work() -> dict[str, float]:
            nonlocal scored
            scored = score(self.annotation_file, detections, self.image_ids)
            return numbers_of(scored)

        return Evaluation(ranks.on_main(work, self.timeout), detections, scored)


def result_rows(batch: EvaluationBatch, found: list[Detections], categories: Categories) -> NDArray[np.void]:
    """Turn a batch's detections into an array of RESULT; boxes are not clipped (RECIPE 7)."""
    category_ids = np.array((0, *categories.ids))  # by label
    counts = [len(scores) for _, scores, _ in found]
    boxes_ltrb, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    sizes_px = np.repeat(batch.sizes_px.double().numpy(), counts, axis=0)
    bbox = boxes_ltrb.double().numpy() * np.tile(sizes_px, 2)
    bbox[:, 2:] -= bbox[:, :2]
    rows = np.empty(len(scores), RESULT)
    rows["image_id"] = np.repeat(batch.image_ids, counts)
    rows["category_id"] = category_ids[labels.numpy()]
    rows["bbox"] = bbox
    rows["score"] = scores.numpy()
    return rows


def evaluation_report(
    checkpoint: str, evaluator: Evaluator, result: Evaluation, runtime: Runtime
) -> dict[str, Any]:
    """Return the numbers and everything that they depend on, for json."""
    return {
        "numbers": result.numbers,
        "notes": result.notes,
        "checkpoint": checkpoint,
        "annotation_file": str(evaluator.annotation_file),
        "images_scored": evaluator.images,
        "images_without_ground_truth": evaluator.images_without_truth,
        "detections": len(result.detections),
        "score_threshold": SCORE_THRESHOLD,
        "iou_threshold": IOU_THRESHOLD,
        "max_detections": MAX_DETECTIONS,
        "precision": runtime.precision.value,
        "device": runtime.device.type,
        "versions": package_versions(),
    }


def write_report(given: str, key: str, report: object, indent: int | None = 2) -> None:
    """Write a report as json to the file named by `key`, already checked by check_file.

    Raises UserError if that fails.
    """
    path = Path(given)
    with writing(path, key):
        path.write_text(json.dumps(report, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def as_results(detections: NDArray[np.void]) -> list[dict[str, Any]]:
    """Turn an array of RESULT into a COCO results list, bit for bit."""
    fields = RESULT.names or ()
    columns = (detections[field].tolist() for field in fields)
    return [dict(zip(fields, row, strict=True)) for row in zip(*columns, strict=True)]


def example_pictures(
    paths: Mapping[int, str], scored: Scored, categories: Categories
) -> dict[str, Image.Image]:
    """Draw each image with its ground truth and, beside it, with its detections above SHOWN_SCORE.

    paths: image files by image id. Returns the pictures, keyed by the image file's name without extension.
    """
    names, labels = scored.annotated.names, np.argsort(categories.ids) + 1  # both by ascending id
    truth = scored.truth.take(~scored.truth.crowd)
    found = scored.found.take(np.argsort(-scored.found.scores, kind="stable"))
    found = found.take(found.scores > SHOWN_SCORE)
    pictures = {}
    for image_id, path in paths.items():
        here = scored.annotated.image_ids.searchsorted(image_id)
        annotated, detected = truth.take(truth.images == here), found.take(found.images == here)
        annotated_words = [names[row] for row in annotated.categories]
        detected_words = [
            f"{names[row]} {score:.2f}"
            for row, score in zip(detected.categories, detected.scores, strict=True)
        ]
        halves = []
        for boxes, words, caption in (
            (annotated, annotated_words, "ground truth"),
            (detected, detected_words, f"detections above {SHOWN_SCORE}"),
        ):
            boxes_ltrb_px = boxes.boxes_ltwh_px + np.pad(boxes.boxes_ltwh_px[:, :2], ((0, 0), (2, 0)))
            picture = read_picture(path, upright=False)
            draw_boxes(picture, boxes_ltrb_px.tolist(), labels[boxes.categories].tolist(), words)
            halves.append(captioned(picture, caption))
        pictures[Path(path).stem] = grid(halves, columns=2)
    return pictures
