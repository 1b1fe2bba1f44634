"""The objects in the embedded set's pictures: one drawing function per category, with random variation."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
from numpy.random import Generator
from PIL import Image

from data.demo.sketch import Colour, Sketch, curve, light_up, pick, scaled, varied


class Ground(Enum):
    """Where an object may be."""

    SKY = auto()
    WATER = auto()
    ROAD = auto()
    LAND = auto()


@dataclass(frozen=True)
class Category:
    """A class of the embedded set.

    height: of a near object, as a fraction of the picture's short side. tilt_degrees: the largest rotation,
    either way. draw: draws one such object on a Sketch.
    """

    id: int
    name: str
    supercategory: str
    ground: Ground
    height: float
    tilt_degrees: float
    draw: Callable[[Sketch, Generator], None]


def render(category: Category, height_px: float, light_from: float, rng: Generator) -> Image.Image:
    """Draw one object of a category.

    height_px: approximate height. light_from: where the light comes from, −1 (left) to 1 (right).
    Returns an RGBA picture cropped to the object.
    """
    sketch = Sketch(height_px)
    category.draw(sketch, rng)
    tilt_degrees = rng.uniform(-category.tilt_degrees, category.tilt_degrees)
    return light_up(sketch.finish(tilt_degrees, mirrored=rng.random() < 0.5), light_from)


def _draw_balloon(sketch: Sketch, rng: Generator) -> None:
    bright = [(222, 52, 60), (206, 48, 116), (128, 66, 176)]
    colours = [pick(bright, rng), pick([(250, 242, 222), (252, 214, 96)], rng)]
    around = np.linspace(0, 0.66 * np.pi, 24)
    half_widths = np.append(0.36 * np.sin(around), 0.07)
    heights = np.append(0.64 + 0.36 * np.cos(around), 0.2)
    turn = rng.uniform(-0.2, 0.2)
    gores = int(rng.integers(5, 10))
    seams = np.linspace(-np.pi / 2 - 0.2, np.pi / 2 + 0.2, gores + 1) + turn
    edges = np.sin(np.clip(seams, -np.pi / 2, np.pi / 2))  # of the visible half
    for gore in range(gores):
        left = list(zip(half_widths * edges[gore], heights, strict=True))
        right = list(zip(half_widths * edges[gore + 1], heights, strict=True))
        sketch.polygon(left + right[::-1], colours[gore % 2])
    if rng.random() < 0.4:
        band = slice(int(rng.integers(8, 12)), int(rng.integers(14, 17)))
        belt = list(zip(half_widths[band], heights[band], strict=True))
        sketch.polygon(belt + [(-x, y) for x, y in reversed(belt)], pick(bright, rng))
    for side in (-1, 1):
        sketch.line([(side * 0.065, 0.21), (side * 0.05, 0.09)], 0.012, (90, 66, 44))
    sketch.rectangle((-0.06, 0.0), (0.06, 0.1), varied((140, 92, 50), rng), 0.015)


def _draw_sailboat(sketch: Sketch, rng: Generator) -> None:
    hull = pick([(32, 52, 96), (24, 78, 108), (122, 74, 40)], rng)
    sail = pick([(250, 246, 234), (250, 246, 234), (240, 222, 180)], rng)
    length = rng.uniform(0.32, 0.42)
    sketch.line([(0.0, 0.1), (0.0, 1.0)], 0.016, (92, 70, 50))
    main = [*curve((-0.012, 0.98), (-0.1 * length, 0.4), (-0.012, 0.2))]
    main += curve((-0.95 * length, 0.19), (-0.75 * length, 0.55), (-0.012, 0.98))
    sketch.polygon(main, sail)
    jib_height = rng.uniform(0.72, 0.92)
    jib = [*curve((0.02, jib_height), (0.6 * length, 0.45), (length, 0.19)), (0.05, 0.22)]
    sketch.polygon(jib, scaled(sail, 0.9) if rng.random() < 0.6 else varied((206, 60, 52), rng))
    for seam in (0.4, 0.6):
        sketch.line([(-0.012, seam), (-(1.05 - seam) * length, seam - 0.01)], 0.008, scaled(sail, 0.85))
    bottom = [*curve((length, 0.165), (0.85 * length, 0.02), (0.6 * length, 0.0)), (-0.75 * length, 0.0)]
    sketch.polygon([(-length, 0.135), *bottom], hull)
    rail = [(-length, 0.14), (length, 0.17), (0.96 * length, 0.14), (-0.98 * length, 0.11)]
    sketch.polygon(rail, scaled(hull, 1.35))


def _draw_car(sketch: Sketch, rng: Generator) -> None:
    paint = pick([(36, 92, 190), (40, 120, 170), (246, 190, 30), (246, 160, 30)], rng)
    half = rng.uniform(0.92, 1.12)
    rear, front = rng.uniform(-0.9, -0.55) * half, rng.uniform(0.08, 0.3) * half
    sketch.polygon([(rear - 0.14, 0.55), (rear, 0.97), (front, 0.97), (front + 0.34, 0.55)], paint)
    sketch.rectangle((-half, 0.16), (half, 0.6), paint, 0.15)
    glass = pick([(150, 196, 216), (96, 128, 148)], rng)
    post = (rear + front) / 2
    rear_window = [(rear - 0.04, 0.58), (rear + 0.06, 0.9), (post - 0.04, 0.9), (post - 0.04, 0.58)]
    front_window = [(post + 0.04, 0.58), (post + 0.04, 0.9), (front - 0.03, 0.9), (front + 0.22, 0.58)]
    sketch.polygon(rear_window, glass)
    sketch.polygon(front_window, glass)
    sketch.rectangle((-half, 0.16), (half, 0.25), scaled(paint, 0.6), 0.04)
    sketch.line([(post, 0.56), (post, 0.26)], 0.015, scaled(paint, 0.65))
    sketch.ellipse((half - 0.09, 0.45), 0.07, 0.06, (255, 240, 180))
    sketch.rectangle((-half, 0.4), (-half + 0.08, 0.52), (170, 20, 30), 0.02)
    for wheel in (-0.58 * half, 0.58 * half):
        sketch.ellipse((wheel, 0.18), 0.2, 0.18, (28, 28, 32))
        sketch.ellipse((wheel, 0.18), 0.1, 0.09, (176, 178, 182))


def _draw_house(sketch: Sketch, rng: Generator) -> None:
    wall = pick([(248, 240, 222), (244, 220, 180), (240, 206, 176)], rng)
    roof = pick([(204, 70, 44), (182, 58, 44), (160, 60, 46)], rng)
    half, eaves = rng.uniform(0.36, 0.56), rng.uniform(0.48, 0.58)
    ridge = rng.choice([0.0, 0.55]) * half  # a gable, or a roof seen from the side
    chimney = rng.uniform(-0.55, 0.35) * half
    sketch.rectangle((chimney, eaves), (chimney + 0.1, rng.uniform(0.94, 1.05)), scaled(roof, 0.75))
    sketch.rectangle((-half, 0.0), (half, eaves + 0.02), wall)
    if ridge == 0.0:
        sketch.polygon([(-half, eaves), (half, eaves), (0.0, 0.96)], wall)
        for side in (-1, 1):
            sketch.line([(side * (half + 0.07), eaves - 0.05), (0.0, 0.97)], 0.075, roof)
        sketch.ellipse((0.0, 0.68), 0.055, 0.055, scaled(roof, 0.7))
    else:
        low, out = eaves - 0.03, half + 0.07
        sketch.polygon([(-out, low), (out, low), (ridge, 0.95), (-ridge, 0.95)], roof)
    door = rng.uniform(-0.15, 0.15) * half
    wood = pick([(70, 90, 60), (110, 60, 36), (50, 70, 110)], rng)
    sketch.rectangle((door - 0.075, 0.0), (door + 0.075, 0.3), wood)
    glass, frame = pick([(120, 160, 186), (66, 82, 104), (255, 220, 120)], rng), (250, 248, 240)
    for window in (-0.64 * half, 0.64 * half):
        sketch.rectangle((window - 0.095, 0.17), (window + 0.095, 0.4), frame)
        sketch.rectangle((window - 0.075, 0.19), (window + 0.075, 0.38), glass)
        sketch.line([(window, 0.18), (window, 0.39)], 0.016, frame)
        sketch.line([(window - 0.08, 0.29), (window + 0.08, 0.29)], 0.016, frame)


def _draw_tree(sketch: Sketch, rng: Generator) -> None:
    trunk = varied((104, 72, 46), rng)
    if rng.random() < 0.25:
        _draw_conifer(sketch, trunk, rng)
        return
    leaves = pick([(58, 124, 46), (74, 138, 50), (46, 104, 56)], rng)
    sketch.polygon([(-0.06, 0.0), (0.06, 0.0), (0.03, 0.5), (-0.03, 0.5)], trunk)
    width, blobs = rng.uniform(0.2, 0.28), 16
    for shade, lift in ((0.72, 0.0), (0.9, 0.03), (1.12, 0.07)):
        turns = rng.uniform(0, 2 * np.pi, blobs)
        reach = np.sqrt(rng.random(blobs)) * (1.3 - shade / 1.6)
        for turn, out in zip(turns, reach, strict=True):
            centre = (width * 1.5 * out * np.cos(turn), 0.62 + lift + 0.32 * out * np.sin(turn))
            radius = rng.uniform(0.09, 0.15)
            sketch.ellipse(centre, radius, radius, scaled(leaves, shade * rng.uniform(0.94, 1.06)))


def _draw_conifer(sketch: Sketch, trunk: Colour, rng: Generator) -> None:
    needles = pick([(34, 88, 62), (48, 104, 60), (40, 84, 84)], rng)
    sketch.rectangle((-0.04, 0.0), (0.04, 0.2), trunk)
    tiers, width = int(rng.integers(3, 6)), rng.uniform(0.24, 0.34)
    for tier in range(tiers):
        low = 0.12 + 0.75 * tier / tiers
        half = width * (1 - 0.75 * tier / tiers)
        hem = [(x * half, low + rng.uniform(-0.02, 0.02)) for x in np.linspace(1, -1, 7)]
        top = min(low + 1.1 / tiers + 0.06, 1.0)
        sketch.polygon([(0.0, top), *hem], scaled(needles, 0.8 + 0.35 * tier / tiers))


def _draw_sheep(sketch: Sketch, rng: Generator) -> None:
    wool = pick([(248, 246, 240), (236, 228, 210)], rng)
    skin = pick([(40, 36, 38), (58, 48, 44)], rng)
    for leg in (-0.4, -0.24, 0.22, 0.38):
        sketch.rectangle((leg - 0.05, 0.0), (leg + 0.05, 0.4), skin, 0.03)
    sketch.ellipse((-0.02, 0.58), 0.55, 0.32, scaled(wool, 0.9))
    for turn in np.linspace(0, 2 * np.pi, 13):
        centre = (-0.02 + 0.48 * np.cos(turn), 0.6 + 0.26 * np.sin(turn))
        sketch.ellipse(centre, 0.15, 0.14, scaled(wool, 0.92 + 0.08 * np.sin(turn)))
    sketch.ellipse((-0.02, 0.64), 0.45, 0.25, wool)
    nod = rng.uniform(-0.22, 0.12)
    sketch.ellipse((0.62, 0.72 + nod), 0.15, 0.19, skin)
    sketch.ellipse((0.7, 0.66 + nod), 0.13, 0.11, skin)
    sketch.ellipse((0.48, 0.82 + nod), 0.12, 0.05, skin)
    sketch.ellipse((0.56, 0.9 + nod), 0.12, 0.08, wool)


def _draw_windmill(sketch: Sketch, rng: Generator) -> None:
    tower = pick([(120, 92, 80), (136, 112, 96), (104, 96, 100)], rng)
    cap, hub = pick([(96, 60, 44), (60, 66, 80), (150, 50, 44)], rng), (0.0, 0.6)
    sketch.polygon([(-0.19, 0.0), (0.19, 0.0), (0.105, 0.6), (-0.105, 0.6)], tower)
    sketch.ellipse((0.0, 0.6), 0.125, 0.12, cap)
    sketch.rectangle((-0.05, 0.0), (0.05, 0.15), scaled(cap, 0.8), 0.02)
    sketch.rectangle((-0.03, 0.3), (0.03, 0.38), (70, 84, 100))
    cloth = pick([(252, 248, 238), (236, 220, 190)], rng)
    first = rng.uniform(0, np.pi / 2)
    for turn in first + np.arange(4) * np.pi / 2:
        along = np.array([np.cos(turn), np.sin(turn)])
        across = 0.1 * np.array([-along[1], along[0]])
        inner, outer, tip = (tuple(hub + reach * along) for reach in (0.1, 0.4, 0.42))
        sketch.polygon([inner, outer, tuple(outer + across), tuple(inner + across)], cloth)
        for reach in (0.17, 0.25, 0.33):
            rung = hub + reach * along
            sketch.line([tuple(rung), tuple(rung + across)], 0.01, scaled(cloth, 0.7))
        sketch.line([hub, tip], 0.024, (92, 66, 48))
    sketch.ellipse(hub, 0.03, 0.03, (60, 46, 40))


# Ids have gaps, like COCO's.
CATEGORIES = (
    Category(2, "balloon", "vehicle", Ground.SKY, 0.62, 7.0, _draw_balloon),
    Category(3, "sailboat", "vehicle", Ground.WATER, 0.78, 7.0, _draw_sailboat),
    Category(5, "car", "vehicle", Ground.ROAD, 0.36, 2.5, _draw_car),
    Category(8, "house", "building", Ground.LAND, 0.6, 1.5, _draw_house),
    Category(13, "tree", "plant", Ground.LAND, 0.78, 4.0, _draw_tree),
    Category(21, "sheep", "animal", Ground.LAND, 0.4, 4.0, _draw_sheep),
    Category(34, "windmill", "building", Ground.LAND, 0.8, 1.5, _draw_windmill),
)
