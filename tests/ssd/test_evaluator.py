import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from ssd.batches import EvaluationBatch
from ssd.boxes import default_boxes, encode_offsets, ltrb_to_cxcywh
from ssd.categories import Categories
from ssd.config import Precision
from ssd.console import RunConsole
from ssd.detect import Detections
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.evaluation.coco import RESULT, score
from ssd.evaluation.evaluator import (
    Evaluator,
    as_results,
    example_pictures,
    result_rows,
    write_report,
)
from ssd.image import class_colour
from ssd.runtime import Runtime
from tests.data.coco_folder import CocoFolder
from tests.fake_gpu import GPU, FakeGpu, OnGpu

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
ZERO = 2**60  # ids that float64 would round
RANKS = Ranks(CPU)
SURROUNDINGS = (Runtime(CPU, Precision.fp32, tf32=False, channels_last=True), RANKS, RunConsole(False))


class Oracle(torch.nn.Module):
    """Answers with a box of one class wherever an image's first pixel is 1, and with background elsewhere."""

    def __init__(self, label: int, confidence: float = 40) -> None:
        super().__init__()
        self.confidence = confidence
        box_ltrb = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
        self.offsets = encode_offsets(ltrb_to_cxcywh(box_ltrb).expand(8732, 4), default_boxes()).T
        self.label = label

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.training
        logits = torch.zeros(len(images), 3, 8732)
        logits[:, 0] = 20
        logits[images[:, 0, 0, 0] == 1, self.label, 4000] = self.confidence
        return self.offsets.expand(len(images), 4, 8732), logits


def three_images() -> list[EvaluationBatch]:
    """Return ids 1, 2, 3, counted from ZERO, in batches of two and one; an object is on the odd ones."""
    images = torch.zeros(3, 3, 300, 300)
    images[::2, 0, 0, 0] = 1
    sizes_px = torch.tensor([[100.0, 50.0]] * 3)
    ids = [ZERO + image for image in (1, 2, 3)]
    return [EvaluationBatch(images[at], ids[at], sizes_px[at]) for at in (slice(0, 2), slice(2, 3))]


class BrokenSecondBatch(list[EvaluationBatch]):
    def __iter__(self) -> Iterator[EvaluationBatch]:
        yield self[0]
        raise UserError("x.jpg can't be read")


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    box = {"category_id": ZERO + 90, "bbox": [10, 5, 40, 20], "area": 800, "iscrowd": 0}
    truth = {
        "images": [{"id": ZERO + image} for image in (1, 2, 3)],
        "categories": [{"id": ZERO + 7, "name": "bird"}, {"id": ZERO + 90, "name": "bus"}],
        "annotations": [box | {"id": image, "image_id": ZERO + image} for image in (1, 3)],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    return Evaluator(
        loader=three_images(),
        annotation_file=tmp_path / "val.json",
        image_ids=None,
        images=3,
        images_without_truth=1,
        categories=Categories(ids=(ZERO + 7, ZERO + 90), names=("bird", "bus")),
        timeout=timedelta(seconds=1),
    )


def test_a_detector_that_finds_every_object_and_no_other_scores_one(evaluator: Evaluator):
    rows = [*evaluator.detect(Oracle(label=2), *SURROUNDINGS)]
    assert [len(each) for each in rows] == [1, 1]
    evaluation = evaluator.score(rows, RANKS)
    assert evaluation.numbers["AP"] == pytest.approx(1.0)
    assert evaluation.detections["image_id"].tolist() == [ZERO + 1, ZERO + 3]
    assert evaluation.notes == []
    # Whichever rank found them:
    other = evaluator.score(rows[::-1], RANKS)
    assert other.numbers == evaluation.numbers
    assert np.array_equal(other.detections, evaluation.detections)


class OracleOnGpu(Oracle):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets, logits = super().forward(images)
        return OnGpu(offsets), OnGpu(logits)


def test_a_batch_makes_the_host_wait_for_a_gpu_seven_times(evaluator: Evaluator):
    runtime = replace(SURROUNDINGS[0], device=GPU)
    with FakeGpu() as gpu:
        rows = [*evaluator.detect(OracleOnGpu(label=2), runtime, *SURROUNDINGS[1:])]
    waits = gpu.waits.total() - 1  # beside the default boxes, which are sent there once
    assert 0 < waits <= 2 * 7, gpu.waits
    here = evaluator.detect(Oracle(label=2), *SURROUNDINGS)
    assert all(map(np.array_equal, rows, here))


def test_no_detection_scores_zero_and_says_so(evaluator: Evaluator):
    evaluation = evaluator.score([*evaluator.detect(Oracle(label=0), *SURROUNDINGS)], RANKS)
    assert evaluation.numbers["AP"] == 0.0
    assert evaluation.numbers["AP_large"] == -1.0  # nothing large to count
    assert "No detection" in evaluation.notes[0]


class OneOfTwo(Ranks):
    """Remembers what it told the other rank, which has a batch more and can read all of them."""

    told: list[int]

    def highest(self, value: int) -> int:
        self.told.append(value)
        return 3 if value == 2 else value


@pytest.fixture
def ranks() -> OneOfTwo:
    ranks = OneOfTwo(CPU)
    ranks.told = []
    return ranks


@pytest.mark.parametrize("confidence", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_an_error_of_which_all_ranks_know(
    evaluator: Evaluator, confidence: float, ranks: OneOfTwo
):
    runtime, _, console = SURROUNDINGS
    with pytest.raises(UserError, match=r"outputs are not finite in fp32; give runtime\.precision=fp32, or"):
        list(evaluator.detect(Oracle(2, confidence), runtime, ranks, console))
    assert ranks.told == [2, 1]  # batches, failed


def test_a_rank_without_a_batch_left_takes_part_in_the_round_of_the_others(
    evaluator: Evaluator, ranks: OneOfTwo
):
    runtime, _, console = SURROUNDINGS
    rows = [*evaluator.detect(Oracle(label=2), runtime, ranks, console)]
    assert [len(each) for each in rows] == [1, 1, 0]


@pytest.mark.parametrize("training", [True, False])
def test_however_it_ends_the_network_is_in_the_mode_it_came_in(evaluator: Evaluator, training: bool):
    network = Oracle(label=2).train(training)
    assert len([*evaluator.detect(network, *SURROUNDINGS)]) == 2
    assert network.training is training
    broken = replace(evaluator, loader=BrokenSecondBatch(three_images()))
    with pytest.raises(UserError, match=r"x\.jpg"):
        list(broken.detect(network, *SURROUNDINGS))
    assert network.training is training
    rounds = evaluator.detect(network, *SURROUNDINGS)
    next(rounds)
    assert not torch.is_inference_mode_enabled()
    rounds.close()  # as by an error in the caller's loop
    assert network.training is training


def test_boxes_go_back_to_pixels_unclipped_with_the_files_category_ids():
    sizes_px = torch.tensor([[200.0, 100.0], [50.0, 50.0]])
    batch = EvaluationBatch(torch.empty(2, 3, 300, 300), [11, 12], sizes_px)
    found = [
        Detections(torch.tensor([[-0.1, 0.5, 0.5, 1.2]]), torch.tensor([0.5]), torch.tensor([2])),
        Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64)),
    ]
    (row,) = result_rows(batch, found, Categories((7, 90), ("bird", "bus")))
    assert (row["image_id"], row["category_id"], row["score"]) == (11, 90, 0.5)
    np.testing.assert_allclose(row["bbox"], [-20, 50, 120, 70], rtol=1e-6)


def test_detections_are_written_as_cocos_results_to_the_bit(tmp_path: Path):
    file = tmp_path / "found.json"
    row = (2**60 + 1, 7, (0.1, -1 / 3, 1e300, 5e-324), np.float32(0.7))
    for rows in ([row, row], []):
        write_report(str(file), "detections", as_results(np.array(rows, RESULT)), indent=None)
        entries = json.loads(file.read_text())
        read = [tuple(tuple(v) if k == "bbox" else v for k, v in entry.items()) for entry in entries]
        assert np.array_equal(np.array(read, RESULT), np.array(rows, RESULT))
    with pytest.raises(UserError, match=r"x\.json can't be written .*; give another detections="):
        write_report(str(file / "x.json"), "detections", [])


def test_an_example_shows_its_own_boxes_and_confident_detections(tmp_path: Path):
    data = CocoFolder(tmp_path, categories=[{"id": 9, "name": "cup"}, {"id": 7, "name": "bird"}])
    for image in (5, 6):
        data.add(image, np.zeros((80, 100, 3), np.uint8), [(30, 20, 30, 30)])
    data.write()
    shown, not_confident = (5, 9, (50, 20, 30, 30), 0.9), (5, 9, (10, 20, 30, 30), 0.2)
    another_images = (6, 9, (10, 20, 30, 30), 0.9)
    scored = score(data.annotation_file, np.array([shown, not_confident, another_images], RESULT))
    paths = {5: str(data.image_folder / "5.png")}
    picture = example_pictures(paths, scored, Categories((9, 7), ("cup", "bird")))["5"]
    for begin, left in ((0, 29), (106, 49)):
        half = np.asarray(picture)[22:, begin : begin + 100]
        coloured = (np.abs(half.astype(int) - class_colour(1)).sum(axis=2) < 60).nonzero()
        assert left <= coloured[1].min() <= left + 2
