"""A picture of the embedded set: objects placed in a landscape, and boxes around their visible parts."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from data.demo.landscape import SHORE, Band, Landscape, Pixels, expose, paint_landscape, to_image
from data.demo.objects import CATEGORIES, Category, Ground, render
from data.demo.sketch import Colour

# These make the set harder or easier to learn; landscape.py and sketch.py have more at their tops.
OBJECT_COUNT_WEIGHTS = (0.05, 0.1, 0.2, 0.25, 0.2, 0.2)  # for 1, 2, … objects placed
GROUND_WEIGHTS = {Ground.SKY: 1.0, Ground.WATER: 1.6, Ground.ROAD: 1.5, Ground.LAND: 1.0}  # per category
SCALE_AT_HORIZON = 0.24  # of the same object's size at the bottom of the picture
DEPTH_BIAS = 0.6  # exponent of the random depth in 0…1: below 1 favours near, large objects
SIZE_SPREAD = 0.15  # relative, each way, on top of perspective
BALLOON_SCALES = (0.14, 1.0)  # of its largest size, log-uniform
EDGE = 0.08  # of the width: how close an object's middle may come to the picture's sides
CROWDING = 0.3  # probability that an object is placed next to, in front of or behind the previous one
MIN_VISIBLE = 0.6  # fraction of an object's pixels; an object that shows less is dropped
MIN_VISIBLE_PX = 45

EMPTY_EVERY = 16  # one image in this many has no objects
SIZES = ((480, 360), (480, 360), (480, 320), (360, 480))
HAZE = 0.2  # how far the farthest object's colours shift towards the sky's
SHADOW_COLOUR = (24, 28, 44)
SHADOW_MARGIN = 4  # pixels for the shadow's soft edge
OPAQUE = 128  # lowest alpha of a pixel that counts as the object's

Mask = NDArray[np.bool_]  # H×W


@dataclass(frozen=True)
class Placed:
    """An object and its position: an RGBA sprite, and its corner, which may lie outside the picture."""

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
    """The visible part of an object: the box around its visible pixels, and their number."""

    category: Category
    box_ltwh_px: tuple[int, int, int, int]
    area_px: int


def make_scene(seed: int, split: int, index: int) -> tuple[Image.Image, list[Annotation]]:
    """Make image number `index` of a split; the three numbers, each at least 0, determine it."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, split, index))))
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    landscape = paint_landscape(width, height, rng)
    # Chosen by index, not at random, so that a small set has empty images too.
    objects = [] if index % EMPTY_EVERY == EMPTY_EVERY // 2 else place_objects(landscape, rng)
    kept = drop_hidden(objects, width, height)
    picture = expose(compose(landscape, [placed for placed, _ in kept]), landscape.weather, rng)
    return picture, [annotate(placed.category, visible) for placed, visible in kept]


def place_objects(landscape: Landscape, rng: Generator) -> list[Placed]:
    """Choose random objects and positions; the farthest object comes first."""
    choices = [(category, _band(category.ground, landscape)) for category in CATEGORIES]
    possible = [(category, band) for category, band in choices if band is not None]
    weights = np.array([GROUND_WEIGHTS[category.ground] for category, _ in possible])
    count = 1 + int(rng.choice(len(OBJECT_COUNT_WEIGHTS), p=OBJECT_COUNT_WEIGHTS))
    objects: list[Placed] = []
    for number in rng.choice(len(possible), size=count, p=weights / weights.sum()):
        category, band = possible[number]
        beside = objects[-1] if objects and rng.random() < CROWDING else None
        objects.append(_place(category, band, beside, landscape, rng))
    # Balloons are behind everything else: no balloon hides a house.
    return sorted(objects, key=lambda one: (one.category.ground is not Ground.SKY, one.foot))


def _band(ground: Ground, landscape: Landscape) -> Band | None:
    match ground:
        case Ground.SKY:
            return 0.0, landscape.horizon
        case Ground.WATER:
            return landscape.water
        case Ground.ROAD:
            return landscape.road
        case Ground.LAND:
            return landscape.land


def _place(
    category: Category, band: Band, beside: Placed | None, landscape: Landscape, rng: Generator
) -> Placed:
    height, width, _ = landscape.pixels.shape
    full_height = category.height * min(width, height) * rng.uniform(1 - SIZE_SPREAD, 1 + SIZE_SPREAD)
    if category.ground is Ground.SKY:
        scale = float(np.exp(rng.uniform(*np.log(BALLOON_SCALES))))
        hover = rng.uniform(-0.1 * full_height * scale, max(band[1] - 0.8 * full_height * scale, 5))
        foot = hover + full_height * scale
    else:
        foot = _draw_foot(category.ground, band, landscape.road, rng)
        depth = (foot - landscape.horizon) / (height - landscape.horizon)
        scale = SCALE_AT_HORIZON + (1 - SCALE_AT_HORIZON) * depth
    sprite = render(category, full_height * scale, landscape.light_from, rng)
    sprite = _hazy(sprite, landscape.weather.sky_low, HAZE * max(1 - scale, 0))
    middle = rng.uniform(EDGE, 1 - EDGE) * width
    if beside is not None:
        middle = beside.left + beside.sprite.width * (0.5 + rng.choice([-1, 1]) * rng.uniform(0.3, 0.8))
    return Placed(category, sprite, round(middle - sprite.width / 2), round(foot) - sprite.height)


def _draw_foot(ground: Ground, band: Band, road: Band | None, rng: Generator) -> float:
    """Choose a random y for an object to stand or float on."""
    foot: float = band[0] + (band[1] - band[0]) * rng.random() ** DEPTH_BIAS
    if ground is Ground.LAND and road is not None and road[0] - 8 < foot < road[1] + 4:
        return max(road[0] - 8, band[0])  # only cars stand on the road
    return foot


def _hazy(sprite: Image.Image, air: Colour, amount: float) -> Image.Image:
    """Blend a sprite's colours towards the air's by an amount in 0…1; keep its alpha."""
    haze = Image.new("RGBA", sprite.size, (*air, 255))
    haze.putalpha(sprite.getchannel("A"))
    return Image.blend(sprite, haze, amount)


def mask_of(placed: Placed, width: int, height: int) -> Mask:
    """Return the object's pixels inside a picture of width × height, as if nothing hid it."""
    canvas = Image.new("L", (width, height))
    canvas.paste(placed.sprite.getchannel("A"), (placed.left, placed.top))
    return np.asarray(canvas) >= OPAQUE


def drop_hidden(objects: list[Placed], width: int, height: int) -> list[tuple[Placed, Mask]]:
    """Drop objects that are mostly hidden by nearer objects or cut off by the picture's edge.

    objects: farthest first. Returns the remaining ones in the same order, each with its visible pixels.
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
    """Paint objects with their shadows and reflections into the landscape, the farthest first."""
    canvas = to_image(landscape.pixels)
    for placed in objects:
        for layer, left, top in _underneath(placed, landscape):
            canvas.paste(layer, (left, top), layer)
        canvas.paste(placed.sprite, (placed.left, placed.top), placed.sprite)
    return np.asarray(canvas, np.float32)


def _underneath(placed: Placed, landscape: Landscape) -> Iterator[tuple[Image.Image, int, int]]:
    """Yield an object's shadow or reflection: RGBA layers with their left and top."""
    match placed.category.ground:
        case Ground.WATER:
            assert landscape.water is not None, "a boat without water"
            top = placed.foot - 2
            reflection = _reflection(placed.sprite)
            below = min(reflection.height, round(landscape.water[1]) + SHORE - top)  # not on the meadow
            yield reflection.crop((0, 0, reflection.width, max(below, 1))), placed.left, top
        case Ground.LAND | Ground.ROAD:
            lean = round(-0.5 * landscape.light_from * placed.sprite.height)
            sunk = round(0.02 * placed.sprite.height)  # so that foot and shadow leave no gap
            left, top = placed.left + min(lean, 0) - SHADOW_MARGIN, placed.foot - SHADOW_MARGIN - sunk - 1
            yield _shadow(placed.sprite, lean, landscape.weather.shadow), left, top


def _reflection(sprite: Image.Image) -> Image.Image:
    """Return a sprite's reflection in water, at its full width."""
    width, height = sprite.size
    mirrored = sprite.transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((width, max(round(0.7 * height), 1)))
    mirrored = mirrored.filter(_softness(sprite))
    mirrored.putalpha(mirrored.getchannel("A").point(lambda alpha: 0.38 * alpha))
    return mirrored


def _shadow(sprite: Image.Image, lean: int, opacity: float) -> Image.Image:
    """Return a sprite's shadow, cast towards the viewer, its far end `lean` pixels right of its foot."""
    width, length = sprite.width, max(round(0.22 * sprite.height), 2)
    shape = sprite.getchannel("A").transpose(Image.Transpose.FLIP_TOP_BOTTOM).resize((width, length))
    # Pillow maps output to input: row y comes from lean·y/length pixels further left.
    skew = (1, -lean / length, min(lean, 0), 0, 1, 0)
    leaning = shape.transform(
        (width + abs(lean), length), Image.Transform.AFFINE, skew, Image.Resampling.BILINEAR
    )
    padded = ImageOps.expand(leaning, SHADOW_MARGIN)
    shadow = Image.new("RGBA", padded.size, SHADOW_COLOUR)
    shadow.putalpha(padded.filter(_softness(sprite)).point(lambda alpha: opacity * alpha))
    return shadow


def _softness(sprite: Image.Image) -> ImageFilter.GaussianBlur:
    return ImageFilter.GaussianBlur(max(0.012 * sprite.height, 0.6))
