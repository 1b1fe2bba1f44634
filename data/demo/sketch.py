"""Drawing tools of the embedded set: shapes in units of an object's height, varied colours, shading."""

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

HUE_SPREAD = 0.025  # of the colour circle, each way
SATURATION_SPREAD = 0.15  # relative, each way
VALUE_SPREAD = 0.12  # relative, each way
RELIEF = 0.38  # how much the side away from the light darkens, and the other brightens, at most

SUPERSAMPLING = 3
REACH = 1.35  # half the canvas's width, in heights of the object

Colour = tuple[int, int, int]
Point = tuple[float, float]
Grid = NDArray[np.float64]  # H×W


class Sketch:
    """A transparent canvas in units of the object's height: (0, 0) is the middle of its foot, y points up."""

    def __init__(self, height_px: float) -> None:
        """Make a canvas for an object height_px pixels tall."""
        self._unit = height_px * SUPERSAMPLING
        size = (int(2 * REACH * self._unit) + 1, int(1.3 * self._unit) + 1)
        self._image = Image.new("RGBA", size)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._px(point) for point in points], fill=colour)

    def ellipse(self, centre: Point, radius_x: float, radius_y: float, colour: Colour) -> None:
        """Fill an ellipse."""
        left, top = self._px((centre[0] - radius_x, centre[1] + radius_y))
        right, bottom = self._px((centre[0] + radius_x, centre[1] - radius_y))
        self._draw.ellipse((left, top, right, bottom), fill=colour)

    def rectangle(self, low: Point, high: Point, colour: Colour, radius: float = 0.0) -> None:
        """Fill a rectangle from its lower left to its upper right corner; radius rounds the corners."""
        left, bottom = self._px(low)
        right, top = self._px(high)
        self._draw.rounded_rectangle((left, top, right, bottom), radius * self._unit, fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line at least one supersampled pixel wide."""
        width_px = max(round(width * self._unit), 1)
        self._draw.line([self._px(point) for point in points], fill=colour, width=width_px)

    def finish(self, tilt_degrees: float, mirrored: bool) -> Image.Image:
        """Return the drawing at its final size, mirrored if asked, rotated and cropped to its content."""
        drawing = self._image.crop(self._image.getbbox()).reduce(SUPERSAMPLING)
        if mirrored:
            drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned = drawing.rotate(tilt_degrees, Image.Resampling.BICUBIC, expand=True)
        return turned.crop(turned.getbbox())

    def _px(self, point: Point) -> Point:
        return (point[0] + REACH) * self._unit, (1.15 - point[1]) * self._unit


def curve(start: Point, control: Point, end: Point) -> list[Point]:
    """Sample a quadratic Bézier curve."""
    ts = np.linspace(0, 1, 12)[:, None]
    points = (1 - ts) ** 2 * np.array(start) + 2 * ts * (1 - ts) * np.array(control) + ts**2 * np.array(end)
    return [(float(x), float(y)) for x, y in points]


def pick(colours: Sequence[Colour], rng: Generator) -> Colour:
    """Choose one of the colours at random and vary it."""
    return varied(colours[int(rng.integers(len(colours)))], rng)


def varied(colour: Colour, rng: Generator) -> Colour:
    """Return a random colour near this one, within the spreads at the top of this file."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    hue = (hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1.0
    saturation = min(saturation * rng.uniform(1 - SATURATION_SPREAD, 1 + SATURATION_SPREAD), 1.0)
    value = min(value * rng.uniform(1 - VALUE_SPREAD, 1 + VALUE_SPREAD), 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def scaled(colour: Colour, factor: float) -> Colour:
    """Return a colour made darker (factor below 1) or lighter."""
    red, green, blue = (min(round(channel * factor), 255) for channel in colour)
    return red, green, blue


def light_up(sprite: Image.Image, light_from: float) -> Image.Image:
    """Make a flat drawing look round: light its blurred alpha, as a height map, from above and one side."""
    pixels = np.array(sprite, np.float32)
    reach = max(round(0.12 * min(sprite.size)), 1)
    heights = np.pad(pixels[..., 3].astype(np.float64) / 255, 2 * reach)  # the blur needs zeros around it
    for axis in (0, 1, 0, 1):
        heights = _box_blur(heights, reach, axis)
    slope_y, slope_x = np.gradient(heights * reach)
    facing = -light_from * slope_x + 0.8 * slope_y
    pixels[..., :3] *= 1 + RELIEF * np.clip(2 * facing, -1, 1)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def _box_blur(values: Grid, reach: int, axis: int) -> Grid:
    """Average over 2·reach + 1 values along an axis, without padding: the axis gets 2·reach shorter.

    Pillow's blurs round to whole grey levels, which would show as contour lines in the slopes.
    """
    width, length = 2 * reach + 1, values.shape[axis]
    sums = np.cumsum(np.insert(values, 0, 0.0, axis=axis), axis=axis)
    upper = sums.take(np.arange(width, length + 1), axis)
    means: Grid = (upper - sums.take(np.arange(length + 1 - width), axis)) / width
    return means
