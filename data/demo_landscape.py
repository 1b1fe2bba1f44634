"""The background of the embedded set's pictures: sky, hills, water and meadow in some light, without objects."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

HORIZON = (0.3, 0.5)  # of the picture's height, from the top
CLOUDS = (0, 5)
FLOWERS = 60  # at most
EXPOSURE = (0.88, 1.12)
CONTRAST = (0.88, 1.12)
TEMPERATURE = 0.05  # gain of red against blue, each way, beyond the weather's own tint
VIGNETTE = 0.28  # darkening of the corners, at most
GRAIN = (1.0, 4.5)  # standard deviation in grey levels
SUN = 0.4  # chance that its disc is seen
SOFTNESS = 0.7  # radius of the lens's blur in pixels, at most

Floats = NDArray[np.float32]
Pixels = Floats  # H×W×3, 0…255
Band = tuple[float, float]  # first and last y in pixels


@dataclass(frozen=True)
class Weather:
    """Colours of one sort of light: RGB, 0…255; tint is a gain for each channel."""

    name: str
    sky: tuple[int, int, int]
    sky_low: tuple[int, int, int]
    water: tuple[int, int, int]
    tint: tuple[float, float, float]
    shadow: float


WEATHERS = (
    Weather("noon", (72, 140, 214), (198, 226, 242), (44, 112, 160), (1.0, 1.0, 0.98), 0.45),
    Weather("morning", (120, 176, 222), (250, 232, 204), (86, 144, 170), (1.05, 0.99, 0.9), 0.4),
    Weather("sunset", (112, 96, 160), (252, 176, 116), (116, 92, 128), (1.06, 0.88, 0.82), 0.42),
    Weather("overcast", (158, 170, 182), (222, 226, 228), (106, 130, 142), (0.97, 0.99, 1.0), 0.22),
    Weather("dusk", (40, 56, 104), (148, 150, 186), (40, 60, 100), (0.78, 0.82, 0.97), 0.3),
)
MEADOWS = ((106, 158, 70), (134, 164, 72), (88, 138, 78), (182, 168, 96), (206, 190, 144), (150, 150, 78))


@dataclass(frozen=True)
class Landscape:
    """An empty picture and where things may stand on it.

    pixels: H×W×3; land and water: the y that feet may have; water and road are None where there is none;
    light_from: −1 left to 1 right.
    """

    pixels: Pixels
    weather: Weather
    light_from: float
    horizon: float
    land: Band
    water: Band | None
    road: Band | None


def paint_landscape(width: int, height: int, rng: Generator) -> Landscape:
    """Paint an empty landscape of width × height pixels."""
    weather = WEATHERS[rng.integers(len(WEATHERS))]
    light_from = rng.uniform(-1, 1)
    horizon = rng.uniform(*HORIZON) * height
    pixels = _sky(width, height, horizon, weather, light_from, rng)
    _add_clouds(pixels, horizon, weather, rng)
    meadow = np.array(MEADOWS[rng.integers(len(MEADOWS))], np.float32) * rng.uniform(0.9, 1.08)
    _add_hills(pixels, horizon, weather, meadow, rng)
    land, water = _shores(height, horizon, rng)
    _add_meadow(pixels, land, weather, meadow, rng)
    if water is not None:
        _add_water(pixels, water, weather, rng)
    road = _add_road(pixels, land, rng) if rng.random() < 0.65 else None
    _add_flowers(pixels, land, road, rng)
    return Landscape(pixels, weather, light_from, horizon, land, water, road)


def expose(pixels: Pixels, weather: Weather, rng: Generator) -> Image.Image:
    """Photograph a finished picture: the weather's tint, exposure, contrast, vignette, lens and grain."""
    height, width, _ = pixels.shape
    warmth = rng.uniform(-TEMPERATURE, TEMPERATURE)
    gains = (
        np.array(weather.tint, np.float32) * rng.uniform(*EXPOSURE) * np.array([1 + warmth, 1, 1 - warmth])
    )
    pixels = 128 + (pixels * gains.astype(np.float32) - 128) * np.float32(rng.uniform(*CONTRAST))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    pixels *= (1 - rng.uniform(0, VIGNETTE) * (x**2 + y**2) / 2)[..., None]
    soft = _image(pixels).filter(ImageFilter.GaussianBlur(rng.uniform(0, SOFTNESS)))
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(*GRAIN)
    return _image(np.asarray(soft, np.float32) + grain)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _noise(shape: tuple[int, int], cells: tuple[float, float], rng: Generator) -> Pixels:
    """Draw smooth noise of unit variance, H×W×1, whose lumps are about cells (height, width) pixels large."""
    rows, columns = (max(round(side / cell), 2) for side, cell in zip(shape, cells, strict=True))
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)[..., None]


def _ridge(width: int, roughness: float, rng: Generator) -> Pixels:
    """Draw the outline of hills over the columns, W, about −1…1."""
    x = np.linspace(0, 2 * np.pi, width, dtype=np.float32)
    waves = [
        np.sin(x * rng.uniform(0.6, 1.0) * 2**octave + rng.uniform(0, 2 * np.pi)) * roughness**octave
        for octave in range(5)
    ]
    return np.sum(waves, axis=0, dtype=np.float32) * np.float32(1 - roughness)


def _fill_below(pixels: Pixels, outline: Pixels, colour: Pixels) -> None:
    """Cover what lies below an outline (W), with a soft edge; colour broadcasts to H×W×3."""
    rows = np.arange(pixels.shape[0], dtype=np.float32)[:, None]
    cover = np.clip(rows - outline + 0.5, 0, 1)[..., None]
    pixels += cover * (colour - pixels)


def _sky(
    width: int, height: int, horizon: float, weather: Weather, light_from: float, rng: Generator
) -> Pixels:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    fall = np.clip(y / horizon, 0, 1)[..., None] ** np.float32(rng.uniform(0.7, 1.4))
    top, low = np.array(weather.sky, np.float32), np.array(weather.sky_low, np.float32)
    pixels = top + (low - top) * fall
    sun_x, sun_y = (0.5 + 0.42 * light_from) * width, rng.uniform(0.1, 0.9) * horizon
    squared = (x - sun_x) ** 2 + (y - sun_y) ** 2
    glow = np.exp(-squared / np.float32(2 * (0.2 * width) ** 2))[..., None] * weather.shadow
    pixels += glow * (np.array([255, 244, 214], np.float32) - pixels)
    if rng.random() < SUN and weather.name != "overcast":
        disc = np.clip(rng.uniform(8, 20) - np.sqrt(squared), 0, 1)[..., None]
        pixels += disc * (np.array([255, 246, 212], np.float32) - pixels)
    return pixels


def _add_clouds(pixels: Pixels, horizon: float, weather: Weather, rng: Generator) -> None:
    height, width, _ = pixels.shape
    cover = Image.new("L", (width, height))
    draw = ImageDraw.Draw(cover)
    for _ in range(rng.integers(CLOUDS[0], CLOUDS[1] + 1)):
        size = rng.uniform(12, 42)
        x, y = rng.uniform(0, width), rng.uniform(0, 0.8) * horizon
        for _ in range(rng.integers(5, 10)):
            puff_x, puff_y = x + rng.normal(0, 1.3) * size, y - abs(rng.normal(0, 0.3)) * size
            radius = rng.uniform(0.3, 0.7) * size
            draw.ellipse(
                (puff_x - 1.4 * radius, puff_y - 0.6 * radius, puff_x + 1.4 * radius, puff_y + 0.5 * radius),
                190,
            )
    soft = (
        np.asarray(cover.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5))), np.float32)[..., None] / 255
    )
    cloud = 0.25 * np.array(weather.sky_low, np.float32) + 0.75 * np.float32(252)
    pixels += soft * (cloud - pixels)


def _add_hills(pixels: Pixels, horizon: float, weather: Weather, meadow: Pixels, rng: Generator) -> None:
    height, width, _ = pixels.shape
    haze = np.array(weather.sky_low, np.float32) * 0.55 + np.array(weather.sky, np.float32) * 0.4
    ridges = int(rng.integers(1, 4))
    roughness = rng.uniform(0.4, 0.62)
    for ridge in range(ridges):
        nearness = (ridge + 1) / (ridges + 1)
        lift = height * rng.uniform(0.05, 0.14) * (1.4 - nearness)
        outline = horizon - lift * (1.0 + 0.8 * _ridge(width, roughness, rng))
        forest = meadow * np.float32(0.72) * np.array([0.85, 1.0, 0.95], np.float32)
        _fill_below(pixels, outline, haze + (forest - haze) * np.float32(0.75 * nearness))


def _shores(height: int, horizon: float, rng: Generator) -> tuple[Band, Band | None]:
    """Share the ground out: meadow alone, a lake behind it, or a bay before it."""
    depth = height - horizon
    kind = rng.random()
    if kind < 0.3:
        return (horizon + 0.02 * depth, height), None
    if kind < 0.65:
        shore = horizon + rng.uniform(0.3, 0.55) * depth
        return (shore + 0.02 * depth, height), (horizon + 0.06 * depth, shore - 0.02 * depth)
    shore = horizon + rng.uniform(0.35, 0.6) * depth
    return (horizon + 0.04 * depth, shore - 0.04 * depth), (shore + 0.06 * depth, height)


def _add_meadow(pixels: Pixels, land: Band, weather: Weather, meadow: Pixels, rng: Generator) -> None:
    height, width, _ = pixels.shape
    shape = (height, width)
    nearness = np.clip((np.arange(height, dtype=np.float32) - land[0]) / (height - land[0]), 0, 1)[
        :, None, None
    ]
    far = 0.6 * meadow + 0.4 * np.array(weather.sky_low, np.float32)
    ground = far + (meadow * np.float32(0.92) - far) * nearness ** np.float32(0.6)
    patches = _noise(shape, (26, 120), rng) * np.float32(0.06) + _noise(shape, (5, 16), rng) * np.float32(
        0.03
    )
    blades = _noise(shape, (2.5, 1.5), rng) * np.float32(0.07) * nearness
    outline = land[0] + (2 + 0.012 * height) * _ridge(width, 0.5, rng) - 2
    _fill_below(pixels, outline, ground * (1 + patches + blades))


def _add_water(pixels: Pixels, water: Band, weather: Weather, rng: Generator) -> None:
    """Lay water over its band; where it is the foreground, it covers all that is below its shore."""
    height, width, _ = pixels.shape
    top, bottom = int(water[0]) - 4, min(int(water[1]) + 4, height)
    rows = bottom - top
    nearness = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    low, deep = np.array(weather.sky_low, np.float32), np.array(weather.water, np.float32)
    surface = 0.45 * low + 0.55 * deep + (deep - (0.45 * low + 0.55 * deep)) * nearness ** np.float32(0.7)
    near_ripples = _noise((rows, width), (7, 60), rng) * nearness + _noise((rows, width), (2, 22), rng)
    surface = surface * (1 + np.float32(rng.uniform(0.02, 0.06)) * near_ripples)
    if bottom < height:
        pixels[top:bottom] = surface
        return
    beach = np.array([226, 208, 164], np.float32)
    outline = top + 3 * _ridge(width, 0.5, rng)
    _fill_below(pixels, outline - rng.uniform(2, 7), beach)
    under = np.vstack([np.repeat(surface[:1], top, axis=0), surface])
    _fill_below(pixels, outline, under)


def _add_road(pixels: Pixels, land: Band, rng: Generator) -> Band:
    """Lay a road across the meadow and return the y of the wheels on it."""
    height, width, _ = pixels.shape
    depth = land[1] - land[0]
    middle = land[0] + rng.uniform(0.3, 0.85) * depth
    half = max(0.09 * (middle - land[0]) + 0.03 * height, 5.0) * 0.6
    asphalt = np.array([[112, 112, 116], [176, 158, 128], [84, 86, 92]], np.float32)[rng.integers(3)]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    across = y - middle - rng.uniform(-0.01, 0.01) * (x - width / 2)
    texture = 1 + np.float32(0.03) * _noise((height, width), (2, 5), rng)
    for reach, colour in ((half + 2, asphalt * 0.8), (half, asphalt)):
        cover = np.clip(reach - np.abs(across) + 0.5, 0, 1)[..., None]
        pixels += cover * (colour * texture - pixels)
    if rng.random() < 0.6:
        dashes = np.clip(half * 0.07 - np.abs(across) + 0.5, 0, 1) * (x % (5 * half) < 2.4 * half)
        pixels += dashes[..., None] * (np.float32(228) - pixels)
    return (middle - 0.3 * half, middle + 0.75 * half)


def _add_flowers(pixels: Pixels, land: Band, road: Band | None, rng: Generator) -> None:
    """Strew flowers and stones, which are too small to be taken for an object."""
    height, width, _ = pixels.shape
    image = _image(pixels)
    draw = ImageDraw.Draw(image)
    colours = [(250, 246, 236), (246, 214, 70), (214, 80, 96), (150, 120, 200), (150, 146, 136)]
    kinds = rng.integers(0, len(colours), 2)
    for _ in range(rng.integers(0, FLOWERS + 1)):
        x, y = rng.uniform(0, width), land[0] + (land[1] - land[0]) * rng.uniform(0.1, 1)
        if road is None or not road[0] - 8 < y < road[1] + 8:
            radius = 0.5 + 1.6 * max(y - 0.4 * height, 0) / height
            colour = colours[kinds[rng.integers(2)]]
            draw.ellipse((x - 1.3 * radius, y - radius, x + 1.3 * radius, y + radius), fill=colour)
    pixels[:] = np.asarray(image, np.float32)
