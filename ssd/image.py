"""Turn a picture of any kind and size into the network's input, and draw boxes on it.

This is for pictures outside a data set. Images of a data set go through DALI, which squashes by the same rule
(antialiased linear resize; values differ by at most a few steps of 255) but ignores the EXIF orientation.
"""

import colorsys
import os
from collections.abc import Sequence
from contextlib import nullcontext
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from .batches import IMAGENET_MEAN, IMAGENET_STD
from .boxes import IMAGE_SIZE
from .errors import UserError

# A file's path, a Pillow image, or an RGB array H×W×3.
Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


class PictureError(UserError):
    """A picture that can't be read; the message says which and why."""


def read_picture(source: Picture | BytesIO, name: str | None = None, upright: bool = True) -> Image.Image:
    """Read a picture as RGB, turned upright by its EXIF orientation. An animation gives its first frame.

    upright: False keeps the stored orientation, which annotations and training use.
    Transparency is dropped, as in DALI; 16-bit channels keep their upper 8 bits. The source is not changed;
    the result is a new picture. name: what errors call the source.
    Raises PictureError if the source is missing, truncated, not a picture, too large (Pillow's limit of 179
    million pixels), without a fixed brightness range (32-bit integers and floats), or any other array.
    """
    name = name or str(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            got = f"{source.dtype} {'×'.join(map(str, source.shape))}"
            raise PictureError(f"{name} is an array {got}; give uint8 H×W×3, RGB")
        return Image.fromarray(source)
    if isinstance(source, str | os.PathLike) and os.path.exists(source) and not os.path.isfile(source):
        raise PictureError(f"{name} is no regular file")  # reading a pipe would wait forever
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as opened:
            # Mode I has 32-bit integers, but only 16 bits of them for PNMs and, in older Pillows, PNGs.
            if opened.mode == "F" or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
                raise ValueError(f"32 bits a channel (mode {opened.mode}) have no range; save it with 8")
            opened.load()
            return _as_rgb(ImageOps.exif_transpose(opened) if upright else opened)
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture of a known kind; save it as JPEG or PNG") from error
    # A broken file can raise almost anything in Pillow's decoders; a huge one, DecompressionBombError.
    except Exception as error:
        raise PictureError(f"{name} can't be read as a picture ({error})") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        upper_bits = np.asarray(picture) >> 8  # convert() would clip at 255
        return Image.fromarray(upper_bits.astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")


def centre_crop(picture: Image.Image) -> Image.Image:
    """Resize so that the short side is 300 and cut out the middle 300×300, at the published offsets."""
    short = min(picture.size)
    left_top, right_bottom = [], []  # of the crop, in pixels of the picture
    for side in picture.size:
        resized = side * IMAGE_SIZE // short
        start = resized // 2 - IMAGE_SIZE // 2
        left_top.append(start * side / resized)
        right_bottom.append((start + IMAGE_SIZE) * side / resized)
    box = (left_top[0], left_top[1], right_bottom[0], right_bottom[1])
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)


def squash(picture: Image.Image) -> Image.Image:
    """Resize to 300×300 without keeping the aspect ratio, as in training (RECIPE 6)."""
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)


def normalize(pictures: NDArray[np.floating]) -> Tensor:
    """Turn RGB values in [0, 1], N×300×300×3, into the network's input N×3×300×300 float32 (RECIPE 1)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    values = torch.from_numpy(np.asarray(pictures, dtype=np.float32))
    return ((values - mean) / std).permute(0, 3, 1, 2)


Box = Sequence[float]  # left, top, right, bottom in pixels of the picture

GOLDEN_ANGLE = 0.61803398875  # of the colour circle: puts neighbouring labels' colours far apart
LIGHTNESS = (0.5, 0.62, 0.74)  # alternates, because some of 80 hues look almost the same


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a label, the same in every picture."""
    lightness = LIGHTNESS[label % len(LIGHTNESS)]
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_ANGLE % 1.0, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int], texts: Sequence[str]
) -> None:
    """Draw boxes in place, clipped to the picture, each with its text on a plate in the class's colour.

    Boxes come best first. Where boxes or plates overlap, the better one is on top.
    """
    draw = ImageDraw.Draw(picture)
    # Large enough to read, even if a large picture is shown smaller.
    text_px = round(10 + max(0, min(picture.size) - 300) / 60)
    line = max(1, round(text_px / 7))
    rim = max(1, round(line / 3))  # a dark edge on both sides, for boxes on a background of their colour
    font = ImageFont.load_default(size=text_px)
    boxes = [_clip(box, picture.size) for box in boxes_ltrb_px]
    colours = [class_colour(label) for label in labels]
    for (left, top, right, bottom), colour in reversed(list(zip(boxes, colours, strict=True))):
        around = (left - rim, top - rim, right + rim, bottom + rim)
        draw.rectangle(around, outline=(0, 0, 0), width=line + 2 * rim)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
    # All plates have one height, or a row of them would look ragged.
    height = draw.textbbox((0, 0), "Ag", font=font)[3] + 2
    for (left, top, _, _), colour, text in reversed(list(zip(boxes, colours, texts, strict=True))):
        # Above the box, but inside the picture.
        width = draw.textlength(text, font=font) + 4
        x, y = max(min(left, picture.width - width), 0), max(top - height, 0)
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + 2, y), text, fill="black" if luminance > 140 else "white", font=font)


def outline(picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int]) -> None:
    """Draw thin boxes without text, in place."""
    draw = ImageDraw.Draw(picture)
    for box, label in zip(boxes_ltrb_px, labels, strict=True):
        draw.rectangle(_clip(box, picture.size), outline=class_colour(label), width=1)


def captioned(picture: Image.Image, caption: str) -> Image.Image:
    """Return the picture with a caption above it and a gap on its right, before the next picture."""
    sheet = ImageOps.expand(picture, (0, 22, 6, 0), "white")
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(sheet).text((4, 11), caption, fill="black", font=font, anchor="lm")
    return sheet


def grid(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Join pictures of the same size into a grid, row by row."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), height * rows), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def _clip(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    left, right = (min(max(x, 0), width - 1) for x in (box[0], box[2]))
    top, bottom = (min(max(y, 0), height - 1) for y in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)
