"""Random draws → crop window, flip and colour of one training image, and its boxes after them (RECIPE 6).

Every image has its own draws (data.sampling), so its augmentation doesn't depend on other images, batches,
ranks or threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
MIN_SIDE = 0.3
ASPECT_RATIOS = (0.5, 2.0)
HUE_DEGREES = (-0.5, 0.5)
SATURATION = (0.5, 1.5)
BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)

MAX_ATTEMPTS = 100
"""Windows to draw before the whole image is taken. One draw in seven chooses the whole image anyway, so this
limit affects at most one image in 5 million. If no window fits, the whole image is the only outcome."""


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one image; the defaults change nothing.

    window_ltwh: left, top, width, height of the part to keep, relative to the image.
    flip: mirror that part horizontally.
    hue: degrees in the YIQ plane. saturation, brightness, contrast: factors.
    """

    window_ltwh: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    hue: float = 0.0
    saturation: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0


def draw_augmentation(boxes_ltrb: NDArray[np.float32], uniforms: Iterator[float]) -> Augmentation:
    """Turn an image's draws into its augmentation (RECIPE 6).

    boxes_ltrb: G×4 relative to the image, G ≥ 1. uniforms: endless, in [0, 1); only as many as needed are
    taken.
    """
    flip, hue, saturation, brightness, contrast = islice(uniforms, 5)
    return Augmentation(
        window_ltwh=_draw_window(boxes_ltrb.tolist(), uniforms),
        flip=flip < 0.5,
        hue=_between(HUE_DEGREES, hue),
        saturation=_between(SATURATION, saturation),
        brightness=_between(BRIGHTNESS, brightness),
        contrast=_between(CONTRAST, contrast),
    )


def augment_boxes(
    augmentations: Sequence[Augmentation],
    boxes_ltrb: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int32]],
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int32]]]:
    """Return the boxes, relative to the window, and labels of each of N augmented images.

    A box is kept if its centre is in the window, and is clipped to it (RECIPE 6). boxes_ltrb: N times G×4.
    labels: N times G.
    """
    # All boxes of the batch at once: one image has too few to pay for NumPy's calls.
    image_of = np.repeat(np.arange(len(labels)), [len(each) for each in labels])
    left, top, width, height = np.array([each.window_ltwh for each in augmentations])[image_of].T
    flip = np.array([each.flip for each in augmentations])[image_of]
    x1, y1, x2, y2 = np.concatenate(boxes_ltrb).astype(np.float64).T
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    inside = (left <= x) & (x <= left + width) & (top <= y) & (y <= top + height)

    x1, x2 = (x1 - left) / width, (x2 - left) / width
    x1, x2 = np.where(flip, 1 - x2, x1), np.where(flip, 1 - x1, x2)
    boxes = np.stack((x1, (y1 - top) / height, x2, (y2 - top) / height), axis=1)
    boxes = np.clip(boxes[inside], 0, 1).astype(np.float32)
    starts = np.searchsorted(image_of[inside], np.arange(1, len(labels)))
    return np.split(boxes, starts), np.split(np.concatenate(labels)[inside], starts)


def _draw_window(boxes_ltrb: list[Box], uniforms: Iterator[float]) -> Box:
    """Return the first acceptable window. Plain Python numbers, because an image has few boxes.

    One attempt is one option and one window; the next attempt draws both again, as DALI's random_bbox_crop
    does with num_attempts=1.
    """
    for _ in range(MAX_ATTEMPTS):
        option, of_width, of_height, of_left, of_top = islice(uniforms, 5)
        choice = int(option * (1 + len(MIN_IOUS)))
        if choice == len(MIN_IOUS):
            break
        width = _between((MIN_SIDE, 1.0), of_width)
        height = _between((MIN_SIDE, 1.0), of_height)
        if not ASPECT_RATIOS[0] <= width / height <= ASPECT_RATIOS[1]:
            continue
        window_ltwh = (of_left * (1 - width), of_top * (1 - height), width, height)
        if not any(_centre_inside(box, window_ltwh) for box in boxes_ltrb):
            continue
        min_iou = MIN_IOUS[choice]
        if min_iou == 0 or all(_iou(box, window_ltwh) >= min_iou for box in boxes_ltrb):
            return window_ltwh
    return Augmentation.window_ltwh


def _centre_inside(box_ltrb: Box, window_ltwh: Box) -> bool:
    x1, y1, x2, y2 = box_ltrb
    left, top, width, height = window_ltwh
    return left <= (x1 + x2) / 2 <= left + width and top <= (y1 + y2) / 2 <= top + height


def _iou(box_ltrb: Box, window_ltwh: Box) -> float:
    x1, y1, x2, y2 = box_ltrb
    left, top, width, height = window_ltwh
    overlap_width = min(x2, left + width) - max(x1, left)
    overlap_height = min(y2, top + height) - max(y1, top)
    overlap = max(overlap_width, 0.0) * max(overlap_height, 0.0)
    return overlap / ((x2 - x1) * (y2 - y1) + width * height - overlap)


def _between(bounds: tuple[float, float], uniform: float) -> float:
    low, high = bounds
    return low + (high - low) * uniform
