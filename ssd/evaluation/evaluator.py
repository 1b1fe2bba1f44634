"""Running a detector over a validation set, on every rank, and scoring what all of them found."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd.batches import EvaluationBatch, EvaluationLoader
from ssd.boxes import default_boxes
from ssd.categories import Categories
from ssd.console import RunConsole
from ssd.detect import Detections, detect
from ssd.distributed import Ranks
from ssd.evaluation.coco import coco_numbers
from ssd.runtime import Runtime


@dataclass(frozen=True)
class Evaluation:
    """COCO's numbers, on every rank, and on rank 0 the detections they were computed from (elsewhere none).

    detections: n×7 float64 rows (image id, left, top, width, height in pixels, score, category id).
    """

    numbers: dict[str, float]
    detections: NDArray[np.float64]

    @property
    def notes(self) -> list[str]:
        """Say what a reader of the numbers should know."""
        if max(self.numbers.values()) <= 0 and not len(self.detections):
            return [
                "No detection scored above 0.05, so every number is 0 (early in training it is like that)."
            ]
        return []


@dataclass(frozen=True)
class Evaluator:
    """Scores a network on one validation set.

    image_ids: the images that this evaluation is about, over all ranks; None where these are all of the
    annotation file. images, images_without_truth: how many they are, and how many have no box.
    timeout: how long other ranks wait for rank 0's numbers.
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
    ) -> Iterator[NDArray[np.float64]]:
        """Yield what is found on this rank's next batch, as rows of Evaluation; every rank iterates.

        All ranks yield equally often, no rows where one has no batch left. The network is left in the mode it
        came in. Raises UserError on all ranks for a batch that one can't read.
        """
        boxes = default_boxes().to(runtime.device)
        category_ids = torch.tensor((0, *self.categories.ids), dtype=torch.float64)
        batches = iter(self.loader)
        rounds = range(ranks.highest(len(self.loader)))
        training = network.training
        network.eval()
        try:
            for _ in console.follow(rounds, len(rounds), f"evaluating {self.images} images"):
                batch = ranks.on_all(lambda: next(batches, None))
                if batch is None:
                    rows = np.empty((0, 7))
                else:
                    with torch.inference_mode(), runtime.autocast():
                        offsets, logits = network(runtime.arrange(batch.images))
                        rows = result_rows(batch, detect(offsets, logits, boxes), category_ids)
                yield rows
        finally:
            network.train(training)

    def score(self, rows: list[NDArray[np.float64]], ranks: Ranks) -> Evaluation:
        """Compute COCO's numbers on rank 0 from what `detect` gave each rank; every rank calls this."""
        gathered = np.concatenate([np.empty((0, 7)), *ranks.gather_on_main(np.concatenate(rows))])
        # By image, so that equal scores stand in the same order whatever rank found them.
        gathered = gathered[np.argsort(gathered[:, 0], kind="stable")]

        def numbers() -> dict[str, float]:
            return coco_numbers(self.annotation_file, gathered, self.image_ids)

        return Evaluation(ranks.on_main(numbers, self.timeout), gathered)


def result_rows(batch: EvaluationBatch, found: list[Detections], category_ids: Tensor) -> NDArray[np.float64]:
    """Turn a batch's detections into rows as in Evaluation, the boxes unclipped (RECIPE 7).

    category_ids: by label, float64, on the CPU.
    """
    rows = []
    for image_id, size_px, (boxes_ltrb, scores, labels) in zip(
        batch.image_ids, batch.sizes_px, found, strict=True
    ):
        ltrb_px = boxes_ltrb.cpu().double() * size_px.double().repeat(2)
        ltwh_px = torch.cat([ltrb_px[:, :2], ltrb_px[:, 2:] - ltrb_px[:, :2]], dim=1)
        image_column = torch.full((len(scores), 1), image_id, dtype=torch.float64)
        columns = [image_column, ltwh_px, scores.cpu().double()[:, None], category_ids[labels.cpu()][:, None]]
        rows.append(torch.cat(columns, dim=1).numpy())
    return np.concatenate([np.empty((0, 7)), *rows])


def as_coco_results(rows: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Turn rows as in Evaluation into COCO's results list."""
    return [
        {
            "image_id": int(row[0]),
            "category_id": int(row[6]),
            "bbox": row[1:5].tolist(),
            "score": float(row[5]),
        }
        for row in rows
    ]
