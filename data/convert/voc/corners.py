"""VOC's corners in pixels counted from 1, both part of the box ↔ ltwh in pixels from the picture's edge."""

import math

from data.convert.dataset import Header, Ltwh

NAMES = ("xmin", "ymin", "xmax", "ymax")


def to_ltwh(corners_px: tuple[float, float, float, float]) -> Ltwh:
    """Turn xmin, ymin, xmax, ymax into left, top, width, height."""
    xmin, ymin, xmax, ymax = corners_px
    return xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1


def to_corners(ltwh_px: Ltwh, header: Header) -> tuple[int, int, int, int]:
    """Return the nearest whole corners of a box inside a picture that hold at least one pixel."""
    left, top, width, height = ltwh_px
    xmin, xmax = _nearest_pixels(left, left + width, header.width)
    ymin, ymax = _nearest_pixels(top, top + height, header.height)
    return xmin, ymin, xmax, ymax


def _nearest_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    first, last = math.floor(start + 0.5) + 1, math.floor(end + 0.5)
    if first > last:  # both sides are nearest to the same edge: take the pixel of the centre
        first = last = min(math.floor((start + end) / 2) + 1, side)
    return first, last
