"""Boxes with names drawn on pictures, readable on any background."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = Sequence[float]  # left, top, right, bottom in pixels of the picture

GOLDEN_ANGLE = 0.61803398875  # of the colour circle: neighbouring labels get colours far apart


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a label, the same in every picture."""
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_ANGLE % 1.0, 0.55, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int], texts: Sequence[str]
) -> None:
    """Draw boxes, clipped to the picture, each with its text on a plate of the class's colour, in place."""
    draw = ImageDraw.Draw(picture)
    unit = max(1.0, min(picture.size) / 300)
    font = ImageFont.load_default(size=round(11 * unit))
    for box, label, text in zip(boxes_ltrb_px, labels, texts, strict=True):
        left, top, right, bottom = _clip(box, picture.size)
        colour = class_colour(label)
        for inset, ink in (
            (0, (0, 0, 0)),
            (1, colour),
        ):  # a dark rim keeps light colours visible on light ground
            width = max(1, round((3 - 2 * inset) * unit)) + inset
            draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=ink, width=width)
        _plate(draw, picture.size, (left, top), text, colour, font)


def outline(picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int]) -> None:
    """Draw thin boxes without text, in place."""
    draw = ImageDraw.Draw(picture)
    for box, label in zip(boxes_ltrb_px, labels, strict=True):
        left, top, right, bottom = _clip(box, picture.size)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=class_colour(label), width=1)


def side_by_side(left: Image.Image, right: Image.Image, captions: tuple[str, str]) -> Image.Image:
    """Join two pictures of one size under captions."""
    gap, band = 6, 22
    sheet = Image.new("RGB", (left.width + gap + right.width, band + left.height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for picture, x, caption in ((left, 0, captions[0]), (right, left.width + gap, captions[1])):
        sheet.paste(picture, (x, band))
        draw.text((x + 4, band / 2), caption, fill="black", font=font, anchor="lm")
    return sheet


def grid(pictures: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Join pictures of one size row by row."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(pictures)), height * rows), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def _clip(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    left, top, right, bottom = box
    return (
        min(max(left, 0), width - 1),
        min(max(top, 0), height - 1),
        min(max(right, 0), width - 1),
        min(max(bottom, 0), height - 1),
    )


def _plate(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write text above a box's corner, or inside where there is no room above, never off the picture."""
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    width, height = width + 4, height + 2
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    draw.text((left + 2, top), text, fill="black" if luminance > 140 else "white", font=font)
