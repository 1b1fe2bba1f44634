import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd.batches import EvaluationBatch
from ssd.boxes import default_boxes, encode_offsets, ltrb_to_cxcywh
from ssd.categories import Categories
from ssd.config import Precision
from ssd.console import RunConsole
from ssd.detect import Detections
from ssd.distributed import Ranks
from ssd.evaluation.coco import NAMES, coco_numbers
from ssd.evaluation.evaluator import Evaluation, Evaluator, as_coco_results, result_rows
from ssd.evaluation.report import summary_lines
from ssd.runtime import Runtime

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CATEGORIES = Categories(ids=(7, 90), names=("bird", "bus"))


def test_boxes_go_back_to_pixels_unclipped_with_the_files_category_ids():
    sizes_px = torch.tensor([[200.0, 100.0], [50.0, 50.0]])
    batch = EvaluationBatch(torch.empty(2, 3, 300, 300), [11, 12], sizes_px)
    found = [
        Detections(torch.tensor([[-0.1, 0.5, 0.5, 1.2]]), torch.tensor([0.5]), torch.tensor([2])),
        Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)),
    ]
    rows = result_rows(batch, found, torch.tensor([0.0, 7.0, 90.0]))
    np.testing.assert_allclose(rows, [[11, -20, 50, 120, 70, 0.5, 90]], rtol=1e-6)
    assert as_coco_results(rows)[0]["category_id"] == 90


class Oracle(torch.nn.Module):
    """Answers with a box of one class wherever an image's first pixel is 1, and with background elsewhere."""

    def __init__(self, box_ltrb: torch.Tensor, label: int) -> None:
        super().__init__()
        self.offsets = encode_offsets(ltrb_to_cxcywh(box_ltrb).expand(8732, 4), default_boxes()).T
        self.label = label

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.zeros(len(images), 3, 8732)
        logits[:, 0] = 20
        logits[images[:, 0, 0, 0] == 1, self.label, 4000] = 40
        return self.offsets.expand(len(images), 4, 8732), logits


class ThreeImages:
    """Ids 1, 2, 3 in batches of two and one; an object is on the odd ones."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for ids in ([1, 2], [3]):
            images = torch.zeros(len(ids), 3, 300, 300)
            images[[index for index, image in enumerate(ids) if image % 2], 0, 0, 0] = 1
            yield EvaluationBatch(images, ids, torch.tensor([[100.0, 50.0]] * len(ids)))


def evaluate(tmp_path: Path, label: int) -> tuple[Evaluation, torch.nn.Module]:
    truth = {
        "images": [{"id": image} for image in (1, 2, 3)],
        "categories": [{"id": 7, "name": "bird"}, {"id": 90, "name": "bus"}],
        "annotations": [
            {
                "id": image,
                "image_id": image,
                "category_id": 90,
                "bbox": [10, 5, 40, 20],
                "area": 800,
                "iscrowd": 0,
            }
            for image in (1, 3)
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    evaluator = Evaluator(
        loader=ThreeImages(),
        annotation_file=tmp_path / "val.json",
        image_ids=None,
        images=3,
        images_without_truth=1,
        categories=CATEGORIES,
        timeout=timedelta(seconds=1),
    )
    network = Oracle(torch.tensor([[0.1, 0.1, 0.5, 0.5]]), label).train()
    runtime = Runtime(CPU, Precision.fp32, tf32=False, channels_last=True)
    rows = [*evaluator.detect(network, runtime, Ranks(CPU), RunConsole(is_main=False))]
    return evaluator.score(rows, Ranks(CPU)), network


def test_a_detector_that_finds_every_object_and_no_other_scores_one(tmp_path: Path):
    evaluation, network = evaluate(tmp_path, label=2)
    assert evaluation.numbers["AP"] == pytest.approx(1.0)
    assert evaluation.detections[:, 0].tolist() == [1, 3]
    assert evaluation.notes == []
    assert network.training


def test_no_detection_scores_zero_and_says_so(tmp_path: Path):
    evaluation, _ = evaluate(tmp_path, label=0)
    assert evaluation.numbers["AP"] == 0.0
    assert evaluation.numbers["AP_large"] == -1.0  # nothing large to count
    assert "No detection" in evaluation.notes[0]


@pytest.mark.real_data
def test_the_lines_are_those_that_pycocotools_prints(test_data: Path):
    truth_file, found_file = sorted((test_data / "eval_pair").glob("*.json"))
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        reference = COCOeval(truth, truth.loadRes(str(found_file)), "bbox")
        reference.evaluate()
        reference.accumulate()
    with redirect_stdout(io.StringIO()) as printed:
        reference.summarize()
    numbers = coco_numbers(truth_file, found_file)
    assert summary_lines(numbers) == printed.getvalue().splitlines()
    assert tuple(numbers) == NAMES
