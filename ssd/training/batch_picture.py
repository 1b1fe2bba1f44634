"""A picture of a training batch as the network sees it: what augmentation and matching made of the images."""

import torch
from PIL import Image

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD, TrainBatch
from ssd.boxes import IMAGE_SIZE, cxcywh_to_ltrb, decode_offsets, default_boxes
from ssd.categories import Categories
from ssd.image import draw_boxes, grid, outline

SAME_BOX_PX = 0.25  # far above the rounding, and far below what a picture could show apart


def batch_picture(batch: TrainBatch, categories: Categories, most: int = 8) -> Image.Image:
    """Draw up to `most` images of a batch: matched default boxes thin, their ground-truth boxes named."""
    boxes = default_boxes()
    pictures = []
    for image, target_offsets, labels in zip(
        batch.images[:most].cpu(), batch.target_offsets[:most].cpu(), batch.labels[:most].cpu(), strict=True
    ):
        picture = _as_picture(image)
        positive = labels > 0
        matched_px = cxcywh_to_ltrb(boxes[positive]) * IMAGE_SIZE
        truth_px = cxcywh_to_ltrb(decode_offsets(target_offsets, boxes)[positive]) * IMAGE_SIZE
        outline(picture, matched_px.tolist(), labels[positive].tolist())
        truth_px, truth_labels = _each_once(truth_px, labels[positive])
        found = truth_labels.tolist()
        draw_boxes(picture, truth_px.tolist(), found, [categories.name_of(label) for label in found])
        pictures.append(picture)
    return grid(pictures)


def _each_once(boxes_ltrb_px: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep of boxes K×4 with labels K the first of each that differ by the rounding of their offsets alone.

    Many default boxes share a ground-truth box. Its decoded copies are compared with each other: wherever a
    grid were laid, an edge could lie on a line of it and fall to both sides.
    """
    apart_px = (boxes_ltrb_px[:, None] - boxes_ltrb_px).abs().amax(dim=2)  # K×K
    same = (apart_px < SAME_BOX_PX) & (labels[:, None] == labels)
    first = ~same.tril(diagonal=-1).any(dim=1)
    return boxes_ltrb_px[first], labels[first]


def _as_picture(image: torch.Tensor) -> Image.Image:
    """Undo the normalisation of an image 3×300×300."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((image.float() * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
