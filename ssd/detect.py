"""Detections from the network's outputs: decoding, score threshold, non-maximum suppression (RECIPE 7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import cxcywh_to_ltrb, decode_offsets, pairwise_iou

# RECIPE 7; an evaluation report quotes them.
SCORE_THRESHOLD = 0.05
SHOWN_SCORE = 0.3  # to be drawn: low enough to show what a short training has begun to see
IOU_THRESHOLD = 0.5
MAX_DETECTIONS = 200

# Bounds what suppression holds at a time: 4 MB a float matrix of pairs. On a CPU 16 MB was half as fast.
_PAIRS_AT_ONCE = 2**20


class Detections(NamedTuple):
    """What was found on one image, best first.

    boxes: K×4 float32 ltrb relative to the image, not clipped: they may leave [0, 1].
    scores: K float32 in (0, 1]. labels: K int64, from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Candidates:
    """Boxes that may become detections: M each."""

    images: Tensor
    labels: Tensor
    scores: Tensor
    boxes_ltrb: Tensor  # M×4

    def __getitem__(self, index: Tensor) -> "_Candidates":
        return _Candidates(self.images[index], self.labels[index], self.scores[index], self.boxes_ltrb[index])


@torch.no_grad()
def detect(  # noqa: PLR0913 - the paper's and the recipe's knobs, each with its default
    offsets: Tensor,
    logits: Tensor,
    default_boxes: Tensor,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
    max_detections: int = MAX_DETECTIONS,
    candidates_per_class: int = 200,
) -> list[Detections]:
    """Find the objects of N images in the network's outputs (RECIPE 7).

    Of each class but the background, the `candidates_per_class` boxes of best score above `score_threshold`
    go through greedy non-maximum suppression at IoU ≥ `iou_threshold`; of what is left, the `max_detections`
    best of an image are its detections. Of equal scores the lower class, then the lower default box is first.

    offsets: N×4×A, logits: N×C×A, default_boxes: A×4 cxcywh. It computes in float32 and changes no input.
    Raises ValueError where these shapes don't fit each other.
    """
    images, classes, boxes = logits.shape
    if offsets.shape != (images, 4, boxes) or default_boxes.shape != (boxes, 4):
        raise ValueError(
            "detect: offsets N×4×A, logits N×C×A and default_boxes A×4 must agree, got "
            f"{tuple(offsets.shape)}, {tuple(logits.shape)} and {tuple(default_boxes.shape)}"
        )
    candidates = _above_threshold(offsets, logits, default_boxes, score_threshold)
    groups = candidates.images * classes + candidates.labels
    best = _best_of_groups(groups, candidates.scores, candidates_per_class)
    candidates, groups = candidates[best], groups[best]
    candidates = candidates[_not_suppressed(candidates.boxes_ltrb, groups, iou_threshold)]
    found = candidates[_best_of_groups(candidates.images, candidates.scores, max_detections)]
    counts = found.images.bincount(minlength=images).tolist()
    columns = (found.boxes_ltrb, found.scores, found.labels)
    return [Detections(*parts) for parts in zip(*(torch.split(c, counts) for c in columns), strict=True)]


def _above_threshold(
    offsets: Tensor, logits: Tensor, default_boxes: Tensor, score_threshold: float
) -> _Candidates:
    """List every score above the threshold, ordered by image, default box, class."""
    # Classes last: along a middle axis the last bit of softmax depends on how a CPU's threads cut the batch,
    # and so an image's detections would depend on the batch it came in.
    scores = logits.float().transpose(1, 2).contiguous().softmax(dim=2)[:, :, 1:]  # N×A×(C-1)
    offsets = offsets.float().transpose(1, 2)  # N×A×4
    boxes_ltrb = cxcywh_to_ltrb(decode_offsets(offsets, default_boxes.float()))
    images, boxes, classes = (scores > score_threshold).nonzero(as_tuple=True)
    return _Candidates(images, classes + 1, scores[images, boxes, classes], boxes_ltrb[images, boxes])


def _best_of_groups(groups: Tensor, scores: Tensor, count: int) -> Tensor:
    """Index the `count` best of each group, group after group and best first: M, M → at most M.

    Of equal scores the earlier comes first.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    ranks = torch.arange(len(order), device=order.device) - starts.repeat_interleave(sizes)
    return order[ranks < count]


def _not_suppressed(boxes_ltrb: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Suppress within each group: M×4, M → M bool, True where kept.

    groups ascend, and within a group the boxes stand best first.
    """
    sizes = groups.bincount()
    starts = sizes.cumsum(0) - sizes
    largest_first = sizes.argsort(descending=True)
    sizes, starts = sizes[largest_first], starts[largest_first]
    kept = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    for chunk, width in _chunks(sizes.tolist()):
        ranks = torch.arange(width, device=groups.device)
        inside = ranks < sizes[chunk, None]  # chunk×width
        members = starts[chunk, None] + ranks
        # What stands beyond a group's end comes after all its boxes, so it cannot suppress one of them.
        padded_ltrb = boxes_ltrb[members.clamp(max=len(groups) - 1)]
        kept[members[inside]] = _greedy(padded_ltrb, iou_threshold)[inside]
    return kept


def _chunks(sizes: list[int]) -> Iterator[tuple[slice, int]]:
    """Cut groups, largest first, into runs of bounded padded pairs; give each with its padded size."""
    start = 0
    while start < len(sizes) and sizes[start] > 0:
        width = sizes[start]
        stop = start + max(1, _PAIRS_AT_ONCE // width**2)
        yield slice(start, stop), width
        start = stop


def _greedy(boxes_ltrb: Tensor, iou_threshold: float) -> Tensor:
    """Suppress greedily in every row of boxes, best first: rows×K×4 → rows×K bool, True where kept.

    A box is kept where no kept box before it overlaps it. Iterating that rule settles at least one more box a
    pass, and its fixed point is what going through the boxes one by one gives.
    """
    suppresses = (pairwise_iou(boxes_ltrb, boxes_ltrb) >= iou_threshold).triu_(diagonal=1)
    kept = torch.ones(boxes_ltrb.shape[:2], dtype=torch.bool, device=boxes_ltrb.device)
    while True:
        still_kept = ~(suppresses & kept[:, :, None]).any(dim=1)
        if still_kept.equal(kept):
            return kept
        kept = still_kept
