"""Network outputs → detections: decoding, score threshold, non-maximum suppression (RECIPE 7)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import cxcywh_to_ltrb, decode_offsets, pairwise_iou

# RECIPE 7; evaluation reports print them.
SCORE_THRESHOLD = 0.05
SHOWN_SCORE = 0.3  # for drawing; low enough to show something after a short training
IOU_THRESHOLD = 0.5
MAX_DETECTIONS = 200

# Limits the pairs that suppression computes at once: as float32 they take 1 MB, which fits a CPU's cache.
_PAIRS_AT_ONCE = 2**18
# Passes of suppression between two checks for convergence; each check makes the host wait for the GPU.
# No batch, random or crowded, took more than 4 passes, and an extra pass costs little.
_PASSES_AT_ONCE = 8


class Detections(NamedTuple):
    """The detections of one image, best first, on the CPU.

    boxes: K×4 float32 ltrb relative to the image, not clipped: they may exceed [0, 1].
    scores: K float32 in (0, 1]. labels: K int64, from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Candidates:
    """M boxes that may become detections; every field has M rows."""

    images: Tensor
    labels: Tensor
    scores: Tensor
    boxes_ltrb: Tensor  # M×4

    def __getitem__(self, index: Tensor) -> "_Candidates":
        return _Candidates(self.images[index], self.labels[index], self.scores[index], self.boxes_ltrb[index])


@torch.no_grad()
def detect(  # noqa: PLR0913 - parameters of the paper and the recipe, with their defaults
    offsets: Tensor,
    logits: Tensor,
    default_boxes: Tensor,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    candidates_per_class: int = 200,
) -> list[Detections]:
    """Find the objects of N images in the network's outputs (RECIPE 7).

    For each class except background, the `candidates_per_class` best boxes that score above `score_threshold`
    go through greedy non-maximum suppression at IoU ≥ `iou_threshold`. The `max_detections` best
    remaining boxes of each image are returned. Ties go to the lower class, then to the lower default box.

    offsets: N×4×A, logits: N×C×A, default_boxes: A×4 cxcywh. It computes in float32 and changes no input.
    The host waits for the GPU six times, for any N: for the number of candidates, the number per class, the
    number of overlapping pairs, the end of suppression (rarely more than once), the number of detections per
    image, and the detections.
    Raises ValueError if these shapes don't agree.
    """
    images, classes, boxes = logits.shape
    if offsets.shape != (images, 4, boxes) or default_boxes.shape != (boxes, 4):
        raise ValueError(
            "detect: offsets N×4×A, logits N×C×A and default_boxes A×4 must agree, got "
            f"{tuple(offsets.shape)}, {tuple(logits.shape)} and {tuple(default_boxes.shape)}"
        )
    candidates = _above_threshold(offsets, logits, default_boxes, score_threshold)
    groups = candidates.images * classes + candidates.labels
    best, sizes = _best_of_groups(groups, candidates.scores, images * classes, candidates_per_class)
    candidates = candidates[best]
    kept = _not_suppressed(candidates.boxes_ltrb, groups[best], max(sizes, default=0), iou_threshold)
    images_or_none = torch.where(kept, candidates.images, images)
    best, counts = _best_of_groups(images_or_none, candidates.scores, images, max_detections)
    found = candidates[best]
    columns = (found.boxes_ltrb, found.scores[:, None], found.labels[:, None])
    rows = torch.cat(columns, dim=1).cpu()  # K×6; labels are exact in float32
    parts = (rows[:, :4].contiguous(), rows[:, 4].contiguous(), rows[:, 5].long())
    return [Detections(*of_image) for of_image in zip(*(part.split(counts) for part in parts), strict=True)]


def _above_threshold(
    offsets: Tensor, logits: Tensor, default_boxes: Tensor, score_threshold: float
) -> _Candidates:
    """List every score above the threshold, ordered by image, default box, class."""
    # Classes last: on a middle axis, the last bit of softmax depends on how CPU threads split the batch, so
    # an image's detections would depend on the batch it is in.
    scores = logits.float().transpose(1, 2).contiguous().softmax(dim=2)[:, :, 1:]  # N×A×(C-1)
    offsets = offsets.float().transpose(1, 2)  # N×A×4
    boxes_ltrb = cxcywh_to_ltrb(decode_offsets(offsets, default_boxes.float()))
    images, boxes, classes = (scores > score_threshold).nonzero(as_tuple=True)
    return _Candidates(images, classes + 1, scores[images, boxes, classes], boxes_ltrb[images, boxes])


def _best_of_groups(groups: Tensor, scores: Tensor, number: int, count: int) -> tuple[Tensor, list[int]]:
    """Find the `count` best of M items in each of `number` groups. groups, scores: M.

    Returns their indices, group by group and best first, and each group's size, on the host. Ties go to the
    earlier item. Items with the group number `number` belong to no group.
    """
    device = groups.device
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    edges = torch.searchsorted(groups[order], torch.arange(number + 1, device=device))
    counts = edges.diff().clamp(max=count)
    on_host = counts.tolist()
    # Per group: its start among all items minus its start among the kept ones.
    left_out = edges[:-1] - (counts.cumsum(0) - counts)
    total = sum(on_host)
    kept = torch.arange(total, device=device) + left_out.repeat_interleave(counts, output_size=total)
    return order[kept], on_host


def _not_suppressed(boxes_ltrb: Tensor, groups: Tensor, largest: int, iou_threshold: float) -> Tensor:
    """Suppress greedily within each group: M×4, M → M bool, True where kept.

    groups is ascending, each group has at most `largest` boxes, and the boxes of a group come best first.
    A box is kept if no kept box before it overlaps it. Each pass of this rule settles at least one more box;
    its fixed point equals the result of going through the boxes one by one.
    """
    kept = torch.ones_like(groups, dtype=torch.bool)
    later, earlier = _overlapping(boxes_ltrb, groups, largest - 1, iou_threshold)
    while True:
        for _ in range(_PASSES_AT_ONCE):
            before = kept
            suppressors = torch.zeros_like(groups).index_add_(0, later, kept[earlier].long())
            kept = suppressors == 0
        if kept.equal(before):
            return kept


def _overlapping(
    boxes_ltrb: Tensor, groups: Tensor, most: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """List the pairs within a group with IoU ≥ iou_threshold: the later and the earlier indices.

    Each box is compared with the `most` boxes before it, by a window that slides over all boxes. This takes a
    byte per comparison: about as much memory as the scores if all classes have 200 candidates.
    """
    if most < 1:
        return groups[:0], groups[:0]
    places = torch.arange(len(groups), device=groups.device)
    ranks = places - torch.searchsorted(groups, groups)  # within the group
    padded = torch.cat([boxes_ltrb.new_zeros(4, most), boxes_ltrb[:-1].t()], dim=1)
    windows_ltrb = padded.unfold(1, most, 1).movedim(0, -1)  # M×most×4
    back = torch.arange(most, 0, -1, device=groups.device)
    overlap = torch.empty(len(groups), most, dtype=torch.bool, device=groups.device)
    at_once = max(1, _PAIRS_AT_ONCE // most)
    for start in range(0, len(groups), at_once):
        rows = slice(start, start + at_once)
        ious = pairwise_iou(boxes_ltrb[rows, None], windows_ltrb[rows])[:, 0]
        overlap[rows] = (ious >= iou_threshold) & (ranks[rows, None] >= back)
    later, window = overlap.nonzero(as_tuple=True)
    return later, later - back[window]
