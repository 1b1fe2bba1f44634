"""Detections from the network's outputs: decoding, score threshold, non-maximum suppression (RECIPE 7)."""

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

# Bounds what suppression computes at a time: 1 MB a float matrix of pairs, which stays in a CPU's cache.
_PAIRS_AT_ONCE = 2**18
# Passes of suppression between two looks at whether they have come to an end, which make the host wait for a
# GPU. 4 were the most that batches took, random or crowded; one too many costs little.
_PASSES_AT_ONCE = 8


class Detections(NamedTuple):
    """What was found on one image, best first, in the host's memory.

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
    However many images there are, the host waits for a GPU six times: for the number of candidates, of those
    in each class, of pairs that overlap, for the end of suppression (rarely again), for the detections in
    each image, and for these.
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
    # Classes last: along a middle axis the last bit of softmax depends on how a CPU's threads cut the batch,
    # and so an image's detections would depend on the batch it came in.
    scores = logits.float().transpose(1, 2).contiguous().softmax(dim=2)[:, :, 1:]  # N×A×(C-1)
    offsets = offsets.float().transpose(1, 2)  # N×A×4
    boxes_ltrb = cxcywh_to_ltrb(decode_offsets(offsets, default_boxes.float()))
    images, boxes, classes = (scores > score_threshold).nonzero(as_tuple=True)
    return _Candidates(images, classes + 1, scores[images, boxes, classes], boxes_ltrb[images, boxes])


def _best_of_groups(groups: Tensor, scores: Tensor, number: int, count: int) -> tuple[Tensor, list[int]]:
    """Index the `count` best of each of a number of groups, group after group and best first, of M.

    Returns the indices, and on the host how many are each group's. Of equal scores the earlier comes first;
    what is in group `number` is in none.
    """
    device = groups.device
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    edges = torch.searchsorted(groups[order], torch.arange(number + 1, device=device))
    counts = edges.diff().clamp(max=count)
    on_host = counts.tolist()
    # What stands before a group's first one, less what was left out.
    left_out = edges[:-1] - (counts.cumsum(0) - counts)
    total = sum(on_host)
    kept = torch.arange(total, device=device) + left_out.repeat_interleave(counts, output_size=total)
    return order[kept], on_host


def _not_suppressed(boxes_ltrb: Tensor, groups: Tensor, largest: int, iou_threshold: float) -> Tensor:
    """Suppress greedily within each group: M×4, M → M bool, True where kept.

    groups ascend, have at most `largest` boxes, and in each the boxes stand best first.
    A box is kept where no kept box before it overlaps it. Iterating that rule settles at least one more box a
    pass, and its fixed point is what going through the boxes one by one gives.
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
    """List the pairs in a group whose IoU reaches the threshold: the later ones' places, and the earlier's.

    Each box is compared with the `most` ones before it, a window that slides over all boxes. A byte is kept
    for each of them: about as much as the scores take, where all classes have 200 candidates.
    """
    if most < 1:
        return groups[:0], groups[:0]
    places = torch.arange(len(groups), device=groups.device)
    ranks = places - torch.searchsorted(groups, groups)  # in their group
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
