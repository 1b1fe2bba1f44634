"""A picture of the embedded set: objects laid out in a landscape, and the boxes of what is seen of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data.demo_landscape import Landscape, Pixels, expose, paint_landscape
from data.demo_objects import CATEGORIES, Category, Ground, render

# What makes the set harder or easier to learn; demo_objects and demo_landscape have their own at their tops.
OBJECT_COUNT_WEIGHTS = (0.14, 0.2, 0.22, 0.2, 0.14, 0.1)  # of 1, 2, … objects asked for
CATEGORY_WEIGHTS = {
    "balloon": 1.0,
    "sailboat": 1.6,
    "car": 1.5,
    "house": 1.0,
    "tree": 1.0,
    "sheep": 1.0,
    "windmill": 1.0,
}
SCALE_AT_HORIZON = 0.16  # of the size that the same object has at the bottom of the picture
DEPTH_BIAS = 0.75  # exponent of the depth, drawn in 0…1: below 1 favours near, large objects
SIZE_SPREAD = 0.15  # relative, each way, beyond perspective
BALLOON_SCALES = (0.15, 1.0)  # of its largest size, drawn on a logarithmic scale
CROWDING = 0.4  # chance that an object is put beside, before or behind the last one
MIN_VISIBLE = 0.4  # of an object's pixels; one that shows less is left out
MIN_VISIBLE_PX = 45

EMPTY_EVERY = 16  # one image in so many has no object
SIZES = ((480, 360), (480, 360), (480, 320), (360, 480))
HAZE = 0.3  # how far the farthest object's colours go towards the sky's
OPAQUE = 128  # alpha from which a pixel counts as the object's

Mask = NDArray[np.bool_]  # H×W


@dataclass(frozen=True)
class Placed:
    """An object and where it is: sprite is RGBA, left and top its corner in the picture (it may leave it)."""

    category: Category
    sprite: Image.Image
    left: int
    top: int

    @property
    def foot(self) -> int:
        """The y of the lowest row."""
        return self.top + self.sprite.height


@dataclass(frozen=True)
class Annotation:
    """What is seen of an object: its box around the visible pixels, and their number."""

    category: Category
    box_ltwh_px: tuple[int, int, int, int]
    area_px: int


def make_scene(seed: int, split: int, index: int) -> tuple[Image.Image, list[Annotation]]:
    """Make image number index of a split; the three numbers decide everything."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, split, index))))
    width, height = SIZES[rng.integers(len(SIZES))]
    landscape = paint_landscape(width, height, rng)
    # by number and not by chance, so that small sets have some too
    objects = [] if index % EMPTY_EVERY == EMPTY_EVERY // 2 else place_objects(landscape, rng)
    kept = drop_hidden(objects, width, height)
    picture = expose(compose(landscape, [placed for placed, _ in kept]), landscape.weather, rng)
    return picture, [annotate(placed.category, visible) for placed, visible in kept]


def place_objects(landscape: Landscape, rng: Generator) -> list[Placed]:
    """Draw objects and their places, the farthest first."""
    here = {Ground.SKY: True, Ground.LAND: True, Ground.WATER: landscape.water, Ground.ROAD: landscape.road}
    possible = [category for category in CATEGORIES if here[category.ground]]
    weights = np.array([CATEGORY_WEIGHTS[category.name] for category in possible])
    count = rng.choice(len(OBJECT_COUNT_WEIGHTS), p=OBJECT_COUNT_WEIGHTS) + 1
    placed: list[Placed] = []
    for number in rng.choice(len(possible), size=count, p=weights / weights.sum()):
        beside = placed[-1] if placed and rng.random() < CROWDING else None
        placed.append(_place(possible[number], landscape, beside, rng))
    # what flies is behind all that stands: no balloon hides a house
    return sorted(placed, key=lambda one: (one.category.ground is not Ground.SKY, one.foot))


def _place(category: Category, landscape: Landscape, beside: Placed | None, rng: Generator) -> Placed:
    height, width, _ = landscape.pixels.shape
    if category.ground is Ground.SKY:
        low, high = np.log(BALLOON_SCALES)
        scale = float(np.exp(rng.uniform(low, high)))
        foot, depth = 0.0, scale
    else:
        foot = _foot(category, landscape, rng)
        depth = (foot - landscape.horizon) / (height - landscape.horizon)
        scale = SCALE_AT_HORIZON + (1 - SCALE_AT_HORIZON) * depth
    tall = category.height * min(width, height) * scale * rng.uniform(1 - SIZE_SPREAD, 1 + SIZE_SPREAD)
    sprite = _hazy(render(category, tall, landscape.light_from, rng), landscape, depth)
    if category.ground is Ground.SKY:
        foot = sprite.height + rng.uniform(
            -0.1 * sprite.height, max(landscape.horizon - 0.8 * sprite.height, 5)
        )
    middle = rng.uniform(0.02, 0.98) * width
    if beside is not None:
        middle = beside.left + beside.sprite.width * (0.5 + rng.choice([-1, 1]) * rng.uniform(0.3, 0.8))
    return Placed(category, sprite, round(middle - sprite.width / 2), round(foot) - sprite.height)


def _foot(category: Category, landscape: Landscape, rng: Generator) -> float:
    """Draw the y on which an object stands or floats, near ones more often than far ones."""
    bands = {Ground.LAND: landscape.land, Ground.WATER: landscape.water, Ground.ROAD: landscape.road}
    band = bands[category.ground]
    assert band is not None, f"no {category.ground} in this landscape"
    foot = band[0] + (band[1] - band[0]) * rng.random() ** DEPTH_BIAS
    road = landscape.road
    if category.ground is Ground.LAND and road is not None and road[0] - 8 < foot < road[1] + 4:
        foot = max(road[0] - 8, band[0])  # nothing but cars stands on the road
    return float(foot)


def _hazy(sprite: Image.Image, landscape: Landscape, depth: float) -> Image.Image:
    haze = Image.new("RGBA", sprite.size, (*landscape.weather.sky_low, 255))
    haze.putalpha(sprite.getchannel("A"))
    return Image.blend(sprite, haze, HAZE * float(np.clip(1 - 2 * depth, 0, 1)))


def mask_of(placed: Placed, width: int, height: int) -> Mask:
    """Return the object's pixels inside a picture of width × height, as if nothing stood before it."""
    canvas = Image.new("L", (width, height))
    canvas.paste(placed.sprite.getchannel("A"), (placed.left, placed.top))
    return np.asarray(canvas) >= OPAQUE


def drop_hidden(objects: list[Placed], width: int, height: int) -> list[tuple[Placed, Mask]]:
    """Leave out what is hidden too much, by nearer objects or by the picture's edge.

    objects: the farthest first. Returns those kept, in that order, each with its visible pixels.
    """
    taken = np.zeros((height, width), np.bool_)
    kept = []
    for placed in reversed(objects):
        visible = mask_of(placed, width, height) & ~taken
        whole_px = np.count_nonzero(np.asarray(placed.sprite.getchannel("A")) >= OPAQUE)
        if np.count_nonzero(visible) >= max(MIN_VISIBLE * whole_px, MIN_VISIBLE_PX):
            kept.append((placed, visible))
            taken |= visible
    return kept[::-1]


def annotate(category: Category, visible: Mask) -> Annotation:
    """Describe an object by its visible pixels (at least one)."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    box_ltwh_px = (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
    return Annotation(category, box_ltwh_px, int(np.count_nonzero(visible)))


def compose(landscape: Landscape, objects: list[Placed]) -> Pixels:
    """Put objects with their shadows and reflections into the landscape, the farthest first."""
    canvas = Image.fromarray(np.clip(landscape.pixels, 0, 255).astype(np.uint8), "RGB")
    for placed in objects:
        for layer, left, top in _underneath(placed, landscape):
            canvas.paste(layer, (left, top), layer)
        canvas.paste(placed.sprite, (placed.left, placed.top), placed.sprite)
    return np.asarray(canvas, np.float32)


def _underneath(placed: Placed, landscape: Landscape) -> Iterator[tuple[Image.Image, int, int]]:
    """Yield what lies on the ground because of an object: RGBA layers with their left and top."""
    if placed.category.ground is Ground.SKY:
        return
    width, height = placed.sprite.size
    flipped = placed.sprite.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    soft = ImageFilter.GaussianBlur(max(0.012 * height, 0.6))
    if placed.category.ground is Ground.WATER:
        image = flipped.resize((width, max(round(0.7 * height), 1))).filter(soft)
        image.putalpha(image.getchannel("A").point(lambda alpha: 0.38 * alpha))
        yield image, placed.left, placed.foot - 2
        return
    long, lean = max(round(0.22 * height), 2), round(-0.5 * landscape.light_from * height)
    shape = flipped.getchannel("A").resize((width, long))
    # output x takes input x − lean·y/long: the shadow leans away from the light
    skew = (1, -lean / long, min(lean, 0), 0, 1, 0)
    shape = shape.transform(
        (width + abs(lean), long), Image.Transform.AFFINE, skew, Image.Resampling.BILINEAR
    )
    padded = Image.new("L", (shape.width + 8, shape.height + 8))
    padded.paste(shape, (4, 4))
    shadow = Image.new("RGBA", padded.size, (24, 28, 44, 0))
    shadow.putalpha(padded.filter(soft).point(lambda alpha: landscape.weather.shadow * alpha))
    yield shadow, placed.left + min(lean, 0) - 4, placed.foot - 5 - round(0.02 * height)
