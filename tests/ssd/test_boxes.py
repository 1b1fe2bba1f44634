import math

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor

from ssd.boxes import (
    cxcywh_to_ltrb,
    decode_offsets,
    default_boxes,
    encode_offsets,
    ltrb_to_cxcywh,
    match,
    pairwise_iou,
)
from tests.golden_inputs import golden_arrays, ground_truth

pytestmark = pytest.mark.unit


def random_ltrb(count: int, generator: torch.Generator, grid: int | None = None) -> Tensor:
    """Return boxes of positive size inside the image; on a grid, IoUs tie."""
    sizes = 0.05 + 0.6 * torch.rand(count, 2, generator=generator)
    left_top = (1 - sizes) * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([left_top, left_top + sizes], dim=1)
    if grid is not None:
        boxes = (boxes * grid).round() / grid
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1 / grid)
    return boxes


# Default boxes, layouts and IoU


def test_default_boxes_equal_the_published_ones_to_the_last_bit():
    golden = golden_arrays("default_boxes.npz")
    boxes_cxcywh = default_boxes()
    assert boxes_cxcywh.dtype == torch.float32
    assert np.array_equal(boxes_cxcywh.numpy(), golden["cxcywh"])
    assert np.array_equal(cxcywh_to_ltrb(boxes_cxcywh).numpy(), golden["ltrb"])
    boxes_cxcywh.zero_()
    assert default_boxes().min() > 0  # each call returns a new tensor


def test_layouts_and_iou_of_boxes_worked_by_hand():
    boxes_ltrb = torch.tensor([[[0.125, 0.25, 0.625, 0.5]]])
    boxes_cxcywh = torch.tensor([[[0.375, 0.375, 0.5, 0.25]]])
    assert torch.equal(ltrb_to_cxcywh(boxes_ltrb), boxes_cxcywh)
    assert torch.equal(cxcywh_to_ltrb(boxes_cxcywh), boxes_ltrb)
    others_ltrb = [[1.0, 1.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 3.0, 1.0], [3.0, 3.0, 4.0, 4.0]]
    ious = pairwise_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor(others_ltrb))
    assert torch.equal(ious, torch.tensor([[0.2, 1.0, 0.0, 0.0]]))


# Matching


@pytest.mark.parametrize("index", range(5))
def test_match_chooses_the_published_default_boxes(index: int):
    golden = golden_arrays("encode.npz")
    matched_cxcywh, labels = match(*ground_truth(index), default_boxes())
    positive = labels.nonzero()[:, 0]
    assert np.array_equal(positive.numpy(), golden[f"positive_index_{index}"])
    assert np.array_equal(labels[positive].numpy(), golden[f"positive_labels_{index}"])
    np.testing.assert_allclose(matched_cxcywh[positive], golden[f"positive_cxcywh_{index}"], atol=1e-7)
    assert torch.equal(matched_cxcywh[labels == 0], default_boxes()[labels == 0])


def match_one_by_one(
    boxes_ltrb: Tensor, labels: Tensor, defaults: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """RECIPE 3 read literally: among equal IoUs the last one wins."""
    ious = pairwise_iou(boxes_ltrb, cxcywh_to_ltrb(defaults)).tolist()
    owner = [-1] * len(defaults)
    for default in range(len(defaults)):
        best = threshold
        for box in range(len(boxes_ltrb)):
            iou = ious[box][default]
            if iou > threshold and iou >= best:
                owner[default], best = box, iou
    for box in range(len(boxes_ltrb)):
        claimed = max(range(len(defaults)), key=lambda default: (ious[box][default], default))
        owner[claimed] = box
    matched, matched_labels = defaults.clone(), torch.zeros(len(defaults), dtype=torch.int64)
    for default, box in enumerate(owner):
        if box >= 0:
            matched[default] = ltrb_to_cxcywh(boxes_ltrb[box])
            matched_labels[default] = labels[box]
    return matched, matched_labels


@pytest.mark.parametrize("seed", range(20))
def test_match_equals_the_literal_rule_where_ious_tie(seed: int):
    generator = torch.Generator().manual_seed(seed)
    defaults_ltrb = random_ltrb(40, generator, grid=6)
    defaults = ltrb_to_cxcywh(torch.cat([defaults_ltrb, defaults_ltrb[::3]]))
    boxes_ltrb = random_ltrb(6, generator, grid=6)
    boxes_ltrb = torch.cat([boxes_ltrb, boxes_ltrb[1:3]])
    labels = torch.arange(1, 9)
    matched, matched_labels = match(boxes_ltrb, labels, defaults)
    expected, expected_labels = match_one_by_one(boxes_ltrb, labels, defaults, threshold=0.5)
    assert torch.equal(matched_labels, expected_labels)
    assert torch.equal(matched, expected)


def tied_ground_truth(seed: int) -> tuple[Tensor, Tensor]:
    """Return boxes like COCO's, boxes on a coarse grid, and some of these boxes twice."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.cat([random_ltrb(1 + seed % 9, generator), random_ltrb(seed % 7, generator, grid=8)])
    boxes = torch.cat([boxes, boxes[: seed % 4]])
    return boxes, torch.randint(1, 81, (len(boxes),), generator=generator)


def encode_with_dali(truths: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    anchors = cxcywh_to_ltrb(default_boxes()).flatten().tolist()
    given = ([boxes.numpy() for boxes, _ in truths], [labels.int().numpy() for _, labels in truths])

    @pipeline_def(batch_size=len(truths), num_threads=1, device_id=None)
    def graph():
        boxes, labels = fn.external_source(lambda: given, num_outputs=2, dtype=[types.FLOAT, types.INT32])
        stds = [0.1, 0.1, 0.2, 0.2]
        return tuple(fn.box_encoder(boxes, labels, anchors=anchors, criteria=0.5, offset=True, stds=stds))

    encoded = [[torch.from_numpy(np.array(each)) for each in part.as_array()] for part in graph().run()]
    return list(zip(*encoded, strict=True))


def test_match_and_encode_equal_dalis_box_encoder_where_ious_tie():
    truths = [tied_ground_truth(seed) for seed in range(64)]
    truths.append((torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    defaults = default_boxes()
    for truth, (dali_offsets, dali_labels) in zip(truths, encode_with_dali(truths), strict=True):
        boxes_ltrb, labels = truth
        matched_cxcywh, matched_labels = match(boxes_ltrb, labels.int(), defaults)
        assert matched_labels.dtype == torch.int64
        assert torch.equal(matched_labels, dali_labels.to(torch.int64))
        offsets = encode_offsets(matched_cxcywh, defaults)
        torch.testing.assert_close(offsets, dali_offsets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("boxes", "labels"), [((0,), (0,)), ((3, 5), (3,)), ((3, 4), (2,))])
def test_match_refuses_shapes_that_do_not_fit(boxes: tuple[int, ...], labels: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"boxes_ltrb must be G×4 and labels G, got"):
        match(torch.zeros(boxes), torch.ones(labels, dtype=torch.int64), default_boxes())


# Offsets


def test_offsets_of_a_box_worked_by_hand():
    default = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.54, 0.42, 0.4, 0.4]])
    expected = [[0.04 / 0.2 / 0.1, -0.08 / 0.4 / 0.1, math.log(2) / 0.2, 0.0]]
    torch.testing.assert_close(encode_offsets(box, default), torch.tensor(expected))


def test_decoding_undoes_encoding_in_any_batch_shape():
    generator = torch.Generator().manual_seed(0)
    boxes_cxcywh = ltrb_to_cxcywh(random_ltrb(6 * 8732, generator)).reshape(2, 3, -1, 4)
    defaults = default_boxes()
    copy = boxes_cxcywh.clone()
    offsets = encode_offsets(boxes_cxcywh, defaults)
    assert offsets.shape == (2, 3, 8732, 4)
    torch.testing.assert_close(decode_offsets(offsets, defaults), boxes_cxcywh, rtol=1e-5, atol=1e-6)
    assert torch.equal(encode_offsets(defaults, defaults), torch.zeros(8732, 4))
    assert torch.equal(boxes_cxcywh, copy)  # the inputs are unchanged
    assert torch.equal(defaults, default_boxes())
