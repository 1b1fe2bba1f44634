import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ssd.boxes import cxcywh_to_ltrb, decode_offsets, default_boxes
from ssd.detect import Detections, detect
from tests.fake_gpu import FakeGpu, OnGpu
from tests.golden_inputs import decode_inputs, golden_arrays

pytestmark = pytest.mark.unit


def random_outputs(images: int, classes: int, boxes: int, seed: int, levels: int | None = None):
    """Return random offsets, logits and default boxes; scores tie if logits have only a few levels."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(images, 4, boxes, generator=generator)
    logits = 3 * torch.randn(images, classes, boxes, generator=generator)
    if levels is not None:
        logits = torch.randint(levels, (images, classes, boxes), generator=generator).float()
    return offsets, logits, default_boxes()[torch.randperm(8732, generator=generator)[:boxes]]


def outputs_of(boxes_cxcywh: list[list[float]], scores: list[list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return one image's outputs that decode to exactly these boxes (offsets 0), nearly these scores A×C."""
    default_boxes = torch.tensor(boxes_cxcywh)
    return torch.zeros(1, 4, len(boxes_cxcywh)), torch.tensor(scores).log().t()[None], default_boxes


def detect_one_by_one(
    offsets: Tensor, logits: Tensor, default_boxes: Tensor, iou: float, most: int, candidates: int
) -> Detections:
    """RECIPE 7 read literally, for one image: offsets 4×A, logits C×A."""
    boxes_ltrb = cxcywh_to_ltrb(decode_offsets(offsets.t().contiguous(), default_boxes))
    scores = logits.t().contiguous().softmax(dim=1)
    kept = []
    for label in range(1, len(logits)):
        column = scores[:, label].tolist()
        above = [box for box, score in enumerate(column) if score > 0.05]
        waiting = [box for _, box in sorted((-column[box], box) for box in above)][:candidates]
        while waiting:
            best = waiting[0]
            kept.append((best, label))
            overlaps = box_iou(boxes_ltrb[[best]], boxes_ltrb[waiting])[0].tolist()
            left = zip(waiting, overlaps, strict=True)
            waiting = [box for box, overlap in left if overlap < iou and box != best]
    kept.sort(key=lambda pair: -scores[pair].item())
    boxes, labels = torch.tensor(kept[:most], dtype=torch.int64).reshape(-1, 2).t()
    return Detections(boxes_ltrb[boxes], scores[boxes, labels], labels)


def assert_identical(found: Detections, expected: Detections) -> None:
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


# Equivalence


@pytest.mark.parametrize(("iou", "most"), [(0.5, 200), (0.5, 20), (0.45, 200)])
def test_detections_equal_the_published_ones(iou: float, most: int):
    golden = golden_arrays("decode.npz")
    found = detect(*decode_inputs(), default_boxes(), iou_threshold=iou, max_detections=most)
    assert len(found) == 3
    for image, (boxes_ltrb, scores, labels) in enumerate(found):
        expected_ltrb, expected_scores, expected_labels = (
            torch.from_numpy(golden[f"{name}_iou{iou}_max{most}_{image}"])
            for name in ("boxes", "scores", "labels")
        )
        same = (
            (labels[:, None] == expected_labels)
            & ((scores[:, None] - expected_scores).abs() <= 1e-6)
            & ((boxes_ltrb[:, None] - expected_ltrb).abs().amax(dim=2) <= 1e-5)
        )
        assert same.sum(dim=0).tolist() == [1] * len(expected_labels)
        assert same.sum(dim=1).tolist() == [1] * len(expected_labels)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("seed", range(4))
def test_detections_equal_greedy_suppression_one_by_one(seed: int, levels: int | None):
    outputs = random_outputs(images=3, classes=6, boxes=300, seed=seed, levels=levels)
    found = detect(*outputs, iou_threshold=0.3, max_detections=150, candidates_per_class=40)
    for offsets, logits, detections in zip(*outputs[:2], found, strict=True):
        expected = detect_one_by_one(offsets, logits, outputs[2], iou=0.3, most=150, candidates=40)
        assert_identical(detections, expected)


def test_detections_of_a_whole_image_of_random_logits_equal_greedy_suppression_one_by_one():
    offsets, logits, defaults = random_outputs(images=1, classes=81, boxes=8732, seed=0)
    expected = detect_one_by_one(offsets[0], logits[0], defaults, iou=0.5, most=20_000, candidates=200)
    (found,) = detect(offsets, logits, defaults, max_detections=20_000)
    assert len(found.labels) > 5_000
    assert_identical(found, expected)


@pytest.mark.parametrize("threads", [1, 2])  # with several, torch splits tensors by their size
def test_a_batch_gives_what_its_images_give_one_by_one_to_the_last_bit(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    offsets, logits, defaults = random_outputs(images=3, classes=81, boxes=8732, seed=1)
    together = detect(offsets, logits, defaults, max_detections=20_000)
    for image, detections in enumerate(together):
        one = slice(image, image + 1)
        (alone,) = detect(offsets[one], logits[one], defaults, max_detections=20_000)
        assert_identical(detections, alone)
    torch.set_num_threads(before)


@pytest.mark.parametrize("images", [1, 3])
def test_the_host_waits_for_a_gpu_six_times_however_many_images_and_classes(images: int):
    outputs = random_outputs(images, classes=81, boxes=8732, seed=0)
    with FakeGpu() as gpu:
        found = detect(*map(OnGpu, outputs))
    assert gpu.waits.total() <= 6, +gpu.waits
    for there, here in zip(found, detect(*outputs), strict=True):
        assert_identical(there, here)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_outputs_are_computed_in_float32(dtype: torch.dtype):
    offsets, logits, defaults = random_outputs(images=2, classes=6, boxes=300, seed=3)
    offsets, logits = offsets.to(dtype), logits.to(dtype)
    expected = detect(offsets.float(), logits.float(), defaults)
    for low, full in zip(detect(offsets, logits, defaults), expected, strict=True):
        assert low.boxes.dtype == low.scores.dtype == torch.float32
        assert_identical(low, full)


# One rule at a time

WHOLE, UPPER_HALF, UPPER_QUARTER = [0.5, 0.5, 1.0, 1.0], [0.5, 0.25, 1.0, 0.5], [0.5, 0.125, 1.0, 0.25]
LOWER_RIGHT = [0.875, 0.875, 0.25, 0.25]


TWO, THREE = [[0.1, 0.9], [0.2, 0.8]], [[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]
RULES = {  # boxes, scores, options, which boxes are kept
    "an IoU of exactly the threshold suppresses": ([WHOLE, UPPER_HALF], TWO, {"iou_threshold": 0.5}, [0]),
    "one below it does not": ([WHOLE, UPPER_HALF], TWO, {"iou_threshold": 0.501}, [0, 1]),
    "a suppressed box suppresses nothing": ([WHOLE, UPPER_HALF, UPPER_QUARTER], THREE, {}, [0, 2]),
    "classes do not suppress each other": ([WHOLE, WHOLE], [[0.2, 0.8, 0], [0.4, 0, 0.6]], {}, [0, 1]),
    "the threshold is no candidate": ([WHOLE], [[1.0, 1.0]], {"score_threshold": 0.5}, []),
    "what is above it is": ([WHOLE], [[1.0, 1.0]], {"score_threshold": 0.499}, [0]),
    "boxes apart are kept": ([WHOLE, UPPER_HALF, LOWER_RIGHT], THREE, {}, [0, 2]),
    "candidates are cut before": ([WHOLE, UPPER_HALF, LOWER_RIGHT], THREE, {"candidates_per_class": 2}, [0]),
    "detections are cut after": ([WHOLE, UPPER_HALF, LOWER_RIGHT], THREE, {"max_detections": 1}, [0]),
}


@pytest.mark.parametrize(("boxes", "scores", "options", "kept"), RULES.values(), ids=RULES)
def test_rules(boxes: list[list[float]], scores: list[list[float]], options: dict, kept: list[int]):
    (found,) = detect(*outputs_of(boxes, scores), **options)
    assert torch.equal(found.boxes, cxcywh_to_ltrb(torch.tensor(boxes)[kept]))


def test_in_a_row_of_boxes_that_overlap_their_neighbours_every_other_one_is_kept():
    """Each box depends on all before it, and a pass settles one more: too many for one round of passes."""
    row = [[0.01 * place, 0.5, 0.05, 0.5] for place in range(60)]  # IoU 2/3 with the next, 3/7 with the 2nd
    (found,) = detect(*outputs_of(row, [[0.1 + 0.01 * place, 0.9 - 0.01 * place] for place in range(60)]))
    assert torch.equal(found.boxes, cxcywh_to_ltrb(torch.tensor(row)[::2]))


def test_the_best_of_all_classes_come_first_and_ties_by_class_then_default_box():
    boxes = [LOWER_RIGHT, UPPER_QUARTER, WHOLE]
    scores = [[0.2, 0.5, 0.3], [0.2, 0.5, 0.3], [0.4, 0.0625, 0.5375]]
    (found,) = detect(*outputs_of(boxes, scores), iou_threshold=0.9)
    assert found.labels.tolist() == [2, 1, 1, 2, 2, 1]
    assert found.boxes[1:5, 1].tolist() == [0.75, 0.0, 0.75, 0.0]


def test_an_image_without_detections_gets_empty_tensors_and_so_does_a_batch():
    offsets, logits, defaults = outputs_of([WHOLE, LOWER_RIGHT], [[0.1, 0.9], [0.2, 0.8]])
    background = torch.tensor([9.0, -9.0])[:, None].expand_as(logits[0])
    offsets, logits = offsets.repeat(3, 1, 1), torch.stack([background, logits[0], background])
    found = detect(offsets, logits, defaults)
    assert [len(detections.scores) for detections in found] == [0, 2, 0]
    assert (found[0].boxes.shape, found[0].scores.shape, found[0].labels.shape) == ((0, 4), (0,), (0,))
    assert (found[0].boxes.dtype, found[0].labels.dtype) == (torch.float32, torch.int64)
    assert [len(each.scores) for each in detect(offsets, logits, defaults, score_threshold=1.0)] == [0, 0, 0]
    assert detect(offsets[:0], logits[:0], defaults) == []


def test_inputs_are_left_as_they_were_and_nothing_keeps_a_graph():
    outputs = random_outputs(images=2, classes=6, boxes=300, seed=5)
    copies = [tensor.clone() for tensor in outputs]
    for tensor in outputs:
        tensor.requires_grad_()
    found = detect(*outputs)
    assert not any(part.requires_grad for part in found[0])
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(outputs, copies, strict=True))


@pytest.mark.parametrize("position", range(3))
def test_transposed_input_is_refused_by_shape(position: int):
    outputs = list(random_outputs(images=2, classes=6, boxes=20, seed=6))
    outputs[position] = outputs[position].transpose(-1, -2)
    with pytest.raises(ValueError, match=r"must agree, got .*20"):
        detect(*outputs)
