"""Default boxes, matching to ground truth, encoding and decoding of offsets (RECIPE 2, 3 and 4).

Boxes are relative to the image and named by layout: ltrb is (left, top, right, bottom), cxcywh is
(center x, center y, width, height).
"""

import math

import torch
from torch import Tensor

IMAGE_SIZE = 300

# One entry per detection map, RECIPE 2. Step × map size is not always the image size: these are the published
# numbers, and trained weights depend on them.
MAP_SIZES = (38, 19, 10, 5, 3, 1)
STEPS_PX = (8, 16, 32, 64, 100, 300)
SCALES_PX = (21, 45, 99, 153, 207, 261, 315)  # one extra: the second square box is between two scales
ASPECT_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
BOXES_PER_CELL = tuple(2 + 2 * len(ratios) for ratios in ASPECT_RATIOS)
NUM_DEFAULT_BOXES = sum(boxes * size**2 for boxes, size in zip(BOXES_PER_CELL, MAP_SIZES, strict=True))

# RECIPE 4: offsets are divided by these to bring their spread near 1 (the "variances" of the SSD code).
CENTRE_SCALE = 0.1
SIZE_SCALE = 0.2

_CLAIMED = 2.0  # above every IoU


def default_boxes() -> Tensor:
    """Make the default boxes of SSD300: 8732×4 float32 cxcywh, clamped to [0, 1].

    They are ordered by map, size, row, column, as are the network's outputs (RECIPE 2).
    """
    boxes_cxcywh = torch.cat([_default_boxes_of_map(index) for index in range(len(MAP_SIZES))])
    # Computed in float64 and rounded once, as published: computing in float32 changes the last bit.
    return boxes_cxcywh.to(torch.float32).clamp_(0, 1)


def _default_boxes_of_map(index: int) -> Tensor:
    scale, next_scale = SCALES_PX[index] / IMAGE_SIZE, SCALES_PX[index + 1] / IMAGE_SIZE
    between = math.sqrt(scale * next_scale)
    sizes = [(scale, scale), (between, between)]
    for ratio in ASPECT_RATIOS[index]:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        sizes += [(long, short), (short, long)]
    cells = MAP_SIZES[index]
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) / (IMAGE_SIZE / STEPS_PX[index])
    centre_y, centre_x = torch.meshgrid(centres, centres, indexing="ij")
    centres_xy = torch.stack([centre_x, centre_y], dim=-1).expand(len(sizes), -1, -1, -1)
    sizes_wh = torch.tensor(sizes, dtype=torch.float64)[:, None, None].expand_as(centres_xy)
    return torch.cat([centres_xy, sizes_wh], dim=-1).reshape(-1, 4)


def cxcywh_to_ltrb(boxes_cxcywh: Tensor) -> Tensor:
    """Convert boxes …×4 from cxcywh to ltrb, in the same unit."""
    centres, sizes = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centres - 0.5 * sizes, centres + 0.5 * sizes], dim=-1)


def ltrb_to_cxcywh(boxes_ltrb: Tensor) -> Tensor:
    """Convert boxes …×4 from ltrb to cxcywh, in the same unit."""
    left_top, right_bottom = boxes_ltrb[..., :2], boxes_ltrb[..., 2:]
    return torch.cat([0.5 * (left_top + right_bottom), right_bottom - left_top], dim=-1)


def pairwise_iou(boxes_ltrb: Tensor, others_ltrb: Tensor) -> Tensor:
    """Compute the IoU of each pair: …×P×4 and …×Q×4 → …×P×Q. Two boxes of zero area give NaN."""
    left, top, right, bottom = boxes_ltrb[..., :, None, :].unbind(-1)  # each …×P×1
    other_left, other_top, other_right, other_bottom = others_ltrb[..., None, :, :].unbind(-1)  # each …×1×Q
    # In place, because temporaries dominate the cost.
    width = torch.minimum(right, other_right).sub_(torch.maximum(left, other_left)).clamp_(min=0)
    height = torch.minimum(bottom, other_bottom).sub_(torch.maximum(top, other_top)).clamp_(min=0)
    intersection = width.mul_(height)
    area = (right - left) * (bottom - top)
    other_area = (other_right - other_left) * (other_bottom - other_top)
    return intersection.div_((area + other_area).sub_(intersection))


def match(
    boxes_ltrb: Tensor, labels: Tensor, default_boxes: Tensor, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Assign to each default box the ground-truth box that it should predict (RECIPE 3).

    Each ground-truth box claims its best default box, whatever the IoU; if two claim the same one, the later
    wins. Every other default box gets its best ground-truth box if IoU > iou_threshold. Ties in IoU go to the
    last box, as in DALI's BoxEncoder, which produced the published accuracies.

    boxes_ltrb: G×4 ground truth; G may be 0. labels: G, from 1. default_boxes: A×4 cxcywh.
    Returns the matched boxes, A×4 cxcywh (the default box itself if it has no match), and labels, A int64
    (0 if it has no match).
    Raises ValueError if boxes_ltrb is not G×4 or labels is not G.
    """
    if boxes_ltrb.ndim != 2 or boxes_ltrb.shape[1] != 4 or labels.shape != boxes_ltrb.shape[:1]:
        raise ValueError(
            "match: boxes_ltrb must be G×4 and labels G, "
            f"got {tuple(boxes_ltrb.shape)} and {tuple(labels.shape)}"
        )
    ious = pairwise_iou(boxes_ltrb, cxcywh_to_ltrb(default_boxes))  # G×A
    box_indices = torch.arange(len(boxes_ltrb), device=boxes_ltrb.device)
    ious[box_indices, _last_argmax(ious, dim=1)] = _CLAIMED
    # Background is the last row, so that it wins if the best IoU equals the threshold.
    background = ious.new_full((1, len(default_boxes)), iou_threshold)
    winner = _last_argmax(torch.cat([ious, background]), dim=0)  # A
    positive = winner < len(boxes_ltrb)
    contestants_cxcywh = torch.cat([ltrb_to_cxcywh(boxes_ltrb), boxes_ltrb.new_zeros(1, 4)])
    contestant_labels = torch.cat([labels.to(torch.int64), labels.new_zeros(1, dtype=torch.int64)])
    matched_cxcywh = torch.where(positive[:, None], contestants_cxcywh[winner], default_boxes)
    return matched_cxcywh, contestant_labels[winner]


def _last_argmax(values: Tensor, dim: int) -> Tensor:
    """Return the index of the maximum; ties go to the last one (torch.argmax returns the first)."""
    return values.shape[dim] - 1 - values.flip(dim).argmax(dim)


def encode_offsets(boxes_cxcywh: Tensor, default_boxes: Tensor) -> Tensor:
    """Encode boxes as offsets from default boxes, which the network predicts (RECIPE 4).

    boxes_cxcywh: …×A×4. default_boxes: A×4 cxcywh. Returns …×A×4; 0 for a box equal to its default box.
    """
    centres = (boxes_cxcywh[..., :2] - default_boxes[:, :2]) / default_boxes[:, 2:] / CENTRE_SCALE
    sizes = (boxes_cxcywh[..., 2:] / default_boxes[:, 2:]).log() / SIZE_SCALE
    return torch.cat([centres, sizes], dim=-1)


def decode_offsets(offsets: Tensor, default_boxes: Tensor) -> Tensor:
    """Decode offsets from default boxes into boxes, the inverse of encode_offsets (RECIPE 7).

    offsets: …×A×4. default_boxes: A×4 cxcywh. Returns …×A×4 cxcywh.
    """
    centres = offsets[..., :2] * CENTRE_SCALE * default_boxes[:, 2:] + default_boxes[:, :2]
    sizes = (offsets[..., 2:] * SIZE_SCALE).exp() * default_boxes[:, 2:]
    return torch.cat([centres, sizes], dim=-1)
