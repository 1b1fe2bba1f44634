"""Random draws → crop window, flip and colour of one training image, and its boxes under them.

RECIPE 6, in NumPy. Every image has draws of its own (data.sampling): what happens to it depends on no other
image, batch, rank or thread.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
MIN_SIDE = 0.3
ASPECT_RATIOS = (0.5, 2.0)
HUE_DEGREES = (-0.5, 0.5)
SATURATION = (0.5, 1.5)
BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)

MAX_ATTEMPTS = 100
"""Windows drawn before the whole image is taken. One draw in seven is the whole image anyway, so that
happens to one image in 5 million at most, and where no window fits it is the only possible outcome."""

_DRAWS_BEFORE_WINDOWS = 5  # flip, hue, saturation, brightness, contrast
_DRAWS_PER_WINDOW = 5  # option, width, height, left, top

RAW_DRAWS = _DRAWS_BEFORE_WINDOWS + MAX_ATTEMPTS * _DRAWS_PER_WINDOW
"""64-bit draws that one image takes."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to one image; the defaults do nothing.

    window_ltwh: left, top, width, height of the part that is kept, relative to the image.
    flip: mirror that part left to right.
    hue: degrees in the YIQ plane. saturation, brightness, contrast: factors.
    """

    window_ltwh: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    hue: float = 0.0
    saturation: float = 1.0
    brightness: float = 1.0
    contrast: float = 1.0


def draw_augmentation(boxes_ltrb: NDArray[np.float32], draws: NDArray[np.uint64]) -> Augmentation:
    """Turn an image's RAW_DRAWS uniform 64-bit draws into its augmentation (RECIPE 6).

    boxes_ltrb: G×4 relative to the image, G ≥ 1.
    """
    # The upper 53 bits fill a double's significand: uniform in [0, 1), the same on every machine.
    uniforms = (draws >> np.uint64(11)) * np.float64(2.0**-53)
    flip, hue, saturation, brightness, contrast = uniforms[:_DRAWS_BEFORE_WINDOWS].tolist()
    return Augmentation(
        window_ltwh=_draw_window(boxes_ltrb, uniforms[_DRAWS_BEFORE_WINDOWS:].reshape(MAX_ATTEMPTS, -1)),
        flip=flip < 0.5,
        hue=_between(HUE_DEGREES, hue),
        saturation=_between(SATURATION, saturation),
        brightness=_between(BRIGHTNESS, brightness),
        contrast=_between(CONTRAST, contrast),
    )


def augment_boxes(
    augmentation: Augmentation, boxes_ltrb: NDArray[np.float32], labels: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the boxes and labels that the augmented image shows, relative to it.

    A box stays when its centre lies in the window, clipped to it (RECIPE 6). boxes_ltrb G×4, labels G.
    """
    left, top, width, height = augmentation.window_ltwh
    boxes = boxes_ltrb.astype(np.float64)
    inside = _centres_inside(boxes, augmentation.window_ltwh)
    boxes = np.clip((boxes[inside] - (left, top, left, top)) / (width, height, width, height), 0, 1)
    if augmentation.flip:
        boxes = np.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), axis=1)
    return boxes.astype(np.float32), labels[inside]


def _draw_window(
    boxes_ltrb: NDArray[np.float32], attempts: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Take the first acceptable of the windows that the rows of uniforms stand for.

    One attempt is one option and one window; the next attempt draws both again, which is what DALI's
    random_bbox_crop does with num_attempts=1.
    """
    boxes = boxes_ltrb.astype(np.float64)
    for option, *window in attempts.tolist():
        choice = int(option * (1 + len(MIN_IOUS)))
        if choice == len(MIN_IOUS):
            break
        width = _between((MIN_SIDE, 1.0), window[0])
        height = _between((MIN_SIDE, 1.0), window[1])
        if not ASPECT_RATIOS[0] <= width / height <= ASPECT_RATIOS[1]:
            continue
        window_ltwh = (window[2] * (1 - width), window[3] * (1 - height), width, height)
        if not _centres_inside(boxes, window_ltwh).any():
            continue
        if (_ious(boxes, window_ltwh) >= MIN_IOUS[choice]).all():
            return window_ltwh
    return Augmentation.window_ltwh


def _centres_inside(
    boxes_ltrb: NDArray[np.float64], window_ltwh: tuple[float, float, float, float]
) -> NDArray[np.bool_]:
    left, top, width, height = window_ltwh
    x, y = (boxes_ltrb[:, :2] + boxes_ltrb[:, 2:]).T / 2
    inside: NDArray[np.bool_] = (left <= x) & (x <= left + width) & (top <= y) & (y <= top + height)
    return inside


def _ious(
    boxes_ltrb: NDArray[np.float64], window_ltwh: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    left, top, width, height = window_ltwh
    lefts, tops, rights, bottoms = boxes_ltrb.T
    overlap_width = np.minimum(rights, left + width) - np.maximum(lefts, left)
    overlap_height = np.minimum(bottoms, top + height) - np.maximum(tops, top)
    overlap = np.maximum(overlap_width, 0) * np.maximum(overlap_height, 0)
    ious: NDArray[np.float64] = overlap / ((rights - lefts) * (bottoms - tops) + width * height - overlap)
    return ious


def _between(bounds: tuple[float, float], uniform: float) -> float:
    low, high = bounds
    return low + (high - low) * uniform
