"""A picture of a training batch as the network sees it: what augmentation and matching made of the images."""

import torch
from PIL import Image

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD, TrainBatch
from ssd.boxes import IMAGE_SIZE, cxcywh_to_ltrb, decode_offsets, default_boxes
from ssd.categories import Categories
from ssd.draw import draw_boxes, grid, outline


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
        # Many default boxes share a ground-truth box, equal but for the rounding of their offsets.
        once = torch.cat([truth_px.round(), labels[positive, None]], dim=1).unique(dim=0)
        found = once[:, 4].int().tolist()
        draw_boxes(picture, once[:, :4].tolist(), found, [categories.name_of(label) for label in found])
        pictures.append(picture)
    return grid(pictures)


def _as_picture(image: torch.Tensor) -> Image.Image:
    """Undo the normalisation of an image 3×300×300."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = ((image.float() * std + mean) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
