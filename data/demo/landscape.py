"""The background of the embedded set's pictures: sky, hills, water and meadow in varying light."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HORIZON = (0.3, 0.5)  # fraction of the picture's height, from the top
MEADOW_ONLY, LAKE_BEHIND = 0.25, 0.3  # probabilities; otherwise a bay lies in front
ROAD = 0.65  # probability
SHORE = 4  # pixels of water beyond the band where boats may float
CLOUDS = 5  # at most
FLOWERS = 60  # at most
SUN = 0.4  # probability that its disc is visible

EXPOSURE = (0.88, 1.12)
CONTRAST = (0.88, 1.12)
TEMPERATURE = 0.05  # change of red's gain, opposite to blue's, at most; on top of the weather's tint
VIGNETTE = 0.22  # how much the corners darken, at most
SOFTNESS = 0.7  # radius of the lens blur in pixels, at most
GRAIN = (0.5, 3.0)  # standard deviation in grey levels

Floats = NDArray[np.floating]
Pixels = NDArray[np.float32]  # H×W×3, 0…255
Colour = tuple[int, int, int]
Band = tuple[float, float]  # first and last y, in pixels


@dataclass(frozen=True)
class Weather:
    """A kind of light: colours are RGB, tint is a gain per channel, shadow the opacity of shadows."""

    name: str
    sky: Colour
    sky_low: Colour
    water: Colour
    tint: tuple[float, float, float]
    shadow: float


WEATHERS = (
    Weather("noon", (72, 140, 214), (198, 226, 242), (44, 112, 160), (1.0, 1.0, 0.98), 0.45),
    Weather("morning", (120, 176, 222), (250, 232, 204), (86, 144, 170), (1.05, 0.99, 0.9), 0.4),
    Weather("sunset", (112, 96, 160), (252, 176, 116), (116, 92, 128), (1.05, 0.92, 0.86), 0.42),
    Weather("overcast", (158, 170, 182), (222, 226, 228), (106, 130, 142), (0.97, 0.99, 1.0), 0.22),
    Weather("dusk", (40, 56, 104), (148, 150, 186), (40, 60, 100), (0.86, 0.89, 0.98), 0.3),
)
WEATHER_CHANCES = (0.3, 0.25, 0.15, 0.15, 0.15)
MEADOWS = ((106, 158, 70), (134, 164, 72), (88, 138, 78), (182, 168, 96), (206, 190, 144), (150, 150, 78))
ROADS = ((112, 112, 116), (176, 158, 128), (84, 86, 92))
FLOWER_COLOURS = ((250, 246, 236), (246, 214, 70), (214, 80, 96), (150, 120, 200), (150, 146, 136))
SUNLIGHT, CLOUD, BEACH, ROAD_MARK = (255, 245, 213), (252, 252, 252), (226, 208, 164), (228, 228, 228)


@dataclass(frozen=True)
class Landscape:
    """A picture without objects, and where objects may stand in it.

    pixels: H×W×3, 0…255. land, water, road: the range of y for objects' feet, None if the picture has none.
    light_from: from −1, left, to 1, right.
    """

    pixels: Pixels
    weather: Weather
    light_from: float
    horizon: float
    land: Band
    water: Band | None
    road: Band | None


def paint_landscape(width: int, height: int, rng: Generator) -> Landscape:
    """Paint a landscape of width × height pixels."""
    weather = WEATHERS[int(rng.choice(len(WEATHERS), p=WEATHER_CHANCES))]
    light_from = rng.uniform(-1, 1)
    horizon = rng.uniform(*HORIZON) * height
    meadow = _rgb(MEADOWS[int(rng.integers(len(MEADOWS)))]) * rng.uniform(0.9, 1.08)
    land, water = _shores(height, horizon, rng)
    pixels = np.empty((height, width, 3), np.float32)
    _paint_sky(pixels, horizon, weather, light_from, rng)
    _paint_clouds(pixels, horizon, weather, rng)
    _paint_hills(pixels, horizon, weather, meadow, rng)
    _paint_meadow(pixels, land, weather, meadow, rng)
    if water is not None:
        _paint_water(pixels, water, weather, rng)
    road = _paint_road(pixels, land, rng) if rng.random() < ROAD else None
    _paint_flowers(pixels, land, road, rng)
    return Landscape(pixels, weather, light_from, horizon, land, water, road)


def expose(pixels: Pixels, weather: Weather, rng: Generator) -> Image.Image:
    """Make a picture look photographed: the weather's tint, exposure, contrast, vignette, blur and grain."""
    height, width, _ = pixels.shape
    warmth = rng.uniform(-TEMPERATURE, TEMPERATURE)
    gains = np.array(weather.tint, np.float32) * np.array((1 + warmth, 1, 1 - warmth), np.float32)
    graded = 128 + (pixels * gains * rng.uniform(*EXPOSURE) - 128) * rng.uniform(*CONTRAST)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    graded *= 1 - rng.uniform(0, VIGNETTE) / 2 * (x**2 + y**2)[..., None]
    soft = to_image(graded).filter(ImageFilter.GaussianBlur(rng.uniform(0, SOFTNESS)))
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(*GRAIN)
    return to_image(np.asarray(soft, np.float32) + grain)


def to_image(pixels: Pixels) -> Image.Image:
    """Turn pixels into a picture, clipping values outside 0…255."""
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _shores(height: int, horizon: float, rng: Generator) -> tuple[Band, Band | None]:
    """Divide the ground into land and water: only meadow, a lake behind it, or a bay in front of it."""
    depth = height - horizon
    kind, shore = rng.random(), horizon + rng.uniform(0.35, 0.55) * depth
    if kind < MEADOW_ONLY:
        return (horizon + 0.02 * depth, height), None
    if kind < MEADOW_ONLY + LAKE_BEHIND:
        return (shore + 0.02 * depth, height), (horizon + 0.06 * depth, shore - 0.02 * depth)
    return (horizon + 0.04 * depth, shore - 0.04 * depth), (shore + 0.06 * depth, height)


def _paint_sky(pixels: Pixels, horizon: float, weather: Weather, light_from: float, rng: Generator) -> None:
    height, width, _ = pixels.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    fall = np.clip(y / horizon, 0, 1) ** rng.uniform(0.7, 1.4)
    pixels[:] = _rgb(weather.sky)
    _cover(pixels, fall, _rgb(weather.sky_low))
    sun_x, sun_y = (0.5 + 0.42 * light_from) * width, rng.uniform(0.1, 0.9) * horizon
    distance = np.hypot(x - sun_x, y - sun_y)
    _cover(pixels, weather.shadow * np.exp(-0.5 * (distance / (0.2 * width)) ** 2), _rgb(SUNLIGHT))
    if rng.random() < SUN and weather.name != "overcast":
        _cover(pixels, np.clip(rng.uniform(8, 20) - distance, 0, 1), _rgb(SUNLIGHT))


def _paint_clouds(pixels: Pixels, horizon: float, weather: Weather, rng: Generator) -> None:
    height, width, _ = pixels.shape
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.integers(CLOUDS + 1)):
        size = rng.uniform(12, 42)
        cloud_x, cloud_y = rng.uniform(0, width), rng.uniform(0, 0.8) * horizon
        for _ in range(rng.integers(5, 10)):
            x, y = cloud_x + rng.normal(0, 1.3) * size, cloud_y - abs(rng.normal(0, 0.3)) * size
            half_width, half_height = (rng.uniform(0.3, 0.7) * size * side for side in (1.4, 0.55))
            draw.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=190)
    soft = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5)))
    _cover(pixels, np.asarray(soft, np.float32) / 255, 0.25 * _rgb(weather.sky_low) + 0.75 * _rgb(CLOUD))


def _paint_hills(pixels: Pixels, horizon: float, weather: Weather, meadow: Floats, rng: Generator) -> None:
    height, width, _ = pixels.shape
    haze = 0.55 * _rgb(weather.sky_low) + 0.4 * _rgb(weather.sky)
    forest = meadow * np.array([0.61, 0.72, 0.68], np.float32)
    ridges, roughness = int(rng.integers(1, 4)), rng.uniform(0.4, 0.62)
    for ridge in range(ridges):
        nearness = (ridge + 1) / (ridges + 1)
        lift = height * rng.uniform(0.05, 0.14) * (1.4 - nearness)
        outline = horizon - lift * (1 + 0.8 * _ridge(width, roughness, rng))
        _cover(pixels, _below(outline, height), haze + 0.75 * nearness * (forest - haze))


def _paint_meadow(pixels: Pixels, land: Band, weather: Weather, meadow: Floats, rng: Generator) -> None:
    height, width, _ = pixels.shape
    rows = np.arange(height, dtype=np.float32)[:, None]
    nearness = np.clip((rows - land[0]) / (height - land[0]), 0, 1)  # H×1
    texture = 0.06 * _noise((height, width), (26, 120), rng) + 0.03 * _noise((height, width), (5, 16), rng)
    texture += 0.07 * nearness * _noise((height, width), (2.5, 1.5), rng)
    far, near = 0.6 * meadow + 0.4 * _rgb(weather.sky_low), 0.92 * meadow
    ground = far + (near - far) * nearness[..., None] ** 0.6
    outline = land[0] - 2 + (2 + 0.012 * height) * _ridge(width, 0.5, rng)
    _cover(pixels, _below(outline, height), ground * (1 + texture[..., None]))


def _paint_water(pixels: Pixels, water: Band, weather: Weather, rng: Generator) -> None:
    """Paint water over its band, with a beach if it lies in front of the land."""
    height, width, _ = pixels.shape
    top, bottom = round(water[0]) - SHORE, min(round(water[1]) + SHORE, height)
    shape = (bottom - top, width)
    nearness = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    ripples = nearness * _noise(shape, (7, 60), rng) + _noise(shape, (2, 22), rng)
    far, near = 0.45 * _rgb(weather.sky_low) + 0.55 * _rgb(weather.water), _rgb(weather.water)
    surface = far + (near - far) * nearness[..., None] ** 0.7
    surface = surface * (1 + rng.uniform(0.02, 0.06) * ripples[..., None])
    band = pixels[top:bottom]
    if bottom < height:
        band[:] = surface
        return
    outline = 6 + 3 * _ridge(width, 0.5, rng)
    _cover(band, _below(outline - rng.uniform(2, 7), shape[0]), _rgb(BEACH))
    _cover(band, _below(outline, shape[0]), surface)


def _paint_road(pixels: Pixels, land: Band, rng: Generator) -> Band:
    """Paint a road across the land and return the range of y for wheels on it."""
    height, width, _ = pixels.shape
    along = rng.uniform(0.3, 0.85) * (land[1] - land[0])
    middle, half = land[0] + along, max(0.054 * along + 0.018 * height, 3.0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = np.abs(y - middle - rng.uniform(-0.01, 0.01) * (x - width / 2))
    surface = _rgb(ROADS[int(rng.integers(len(ROADS)))])
    surface = surface * (1 + 0.03 * _noise((height, width), (2, 5), rng)[..., None])
    _cover(pixels, np.clip(half + 2.5 - distance, 0, 1), 0.8 * surface)
    _cover(pixels, np.clip(half + 0.5 - distance, 0, 1), surface)
    if rng.random() < 0.6:
        dashes = np.clip(0.07 * half + 0.5 - distance, 0, 1) * (x % (5 * half) < 2.4 * half)
        _cover(pixels, dashes, _rgb(ROAD_MARK))
    return middle - 0.3 * half, middle + 0.75 * half


def _paint_flowers(pixels: Pixels, land: Band, road: Band | None, rng: Generator) -> None:
    """Scatter flowers and stones, which are too small to be mistaken for objects."""
    height, width, _ = pixels.shape
    image = to_image(pixels)
    draw = ImageDraw.Draw(image)
    colours = [FLOWER_COLOURS[int(kind)] for kind in rng.integers(0, len(FLOWER_COLOURS), 2)]
    for number in range(rng.integers(FLOWERS + 1)):
        x, y = rng.uniform(0, width), land[0] + (land[1] - land[0]) * rng.uniform(0.1, 1)
        if road is None or not road[0] - 8 < y < road[1] + 8:
            radius = 0.5 + 1.6 * max(y / height - 0.4, 0)
            box_ltrb_px = (x - 1.3 * radius, y - radius, x + 1.3 * radius, y + radius)
            draw.ellipse(box_ltrb_px, fill=colours[number % 2])
    pixels[:] = np.asarray(image, np.float32)


def _rgb(colour: Colour) -> Floats:
    return np.array(colour, np.float32)


def _cover(pixels: Pixels, opacity: Floats, colour: Floats) -> None:
    """Blend a colour (3, or H×W×3) over pixels in place, with opacity 0…1 (H×W)."""
    pixels += opacity[..., None] * (colour - pixels)


def _below(outline: Floats, height: int) -> Floats:
    """Return 1 below an outline (W, in y) and 0 above, with a soft edge: H×W."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    opacity: Floats = np.clip(rows - outline + 0.5, 0, 1)
    return opacity


def _noise(shape: tuple[int, int], lump: tuple[float, float], rng: Generator) -> Floats:
    """Draw smooth noise of about unit variance, H×W, with lumps of about (height, width) pixels."""
    rows, columns = (max(round(side / size), 2) for side, size in zip(shape, lump, strict=True))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)


def _ridge(width: int, roughness: float, rng: Generator) -> Floats:
    """Draw a random outline of hills: W values, one per column, in about −1…1."""
    x = np.linspace(0, 2 * np.pi, width, dtype=np.float32)
    heights = np.zeros(width, np.float32)
    for octave in range(5):
        pitch = rng.uniform(0.6, 1.0) * 2**octave
        heights += roughness**octave * np.sin(pitch * x + rng.uniform(0, 2 * np.pi))
    return heights * (1 - roughness)
