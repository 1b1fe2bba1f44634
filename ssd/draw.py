"""Boxes with names drawn on pictures, readable on any background and at any size of the picture."""

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = Sequence[float]  # left, top, right, bottom in pixels of the picture
Colour = tuple[int, int, int]

GOLDEN_ANGLE = 0.61803398875  # of the colour circle: neighbouring labels get colours far apart
LIGHTNESS = (0.5, 0.62, 0.74)  # in turn, for of 80 hues some are all but equal
BLACK = (0, 0, 0)


def class_colour(label: int) -> Colour:
    """Return the RGB colour of a label, the same in every picture."""
    lightness = LIGHTNESS[label % len(LIGHTNESS)]
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_ANGLE % 1.0, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int], texts: Sequence[str]
) -> None:
    """Draw boxes, clipped to the picture, each with its text on a plate of the class's colour, in place.

    Boxes come best first: where they cross, the better one is on top, and its plate takes its place first.
    """
    draw = ImageDraw.Draw(picture)
    text_px = _text_px(picture.size)
    font = ImageFont.load_default(size=text_px)
    boxes = [_clip(box, picture.size) for box in boxes_ltrb_px]
    colours = [class_colour(label) for label in labels]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):
        _rectangle(draw, box, colour, width=max(1, round(text_px / 7)))
    # All of one height, or a row of plates would look ragged.
    height = draw.textbbox((0, 0), "Ag", font=font)[3] + 2
    sizes = [(draw.textlength(text, font=font) + 4, height) for text in texts]
    plates = _places(boxes, sizes, picture.size)
    for plate, colour, text in reversed(list(zip(plates, colours, texts, strict=True))):
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        draw.rectangle(plate, fill=colour)
        draw.text((plate[0] + 2, plate[1]), text, fill="black" if luminance > 140 else "white", font=font)


def outline(picture: Image.Image, boxes_ltrb_px: Sequence[Box], labels: Sequence[int]) -> None:
    """Draw thin boxes without text, in place."""
    draw = ImageDraw.Draw(picture)
    for box, label in zip(boxes_ltrb_px, labels, strict=True):
        draw.rectangle(_clip(box, picture.size), outline=class_colour(label), width=1)


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


def _text_px(size: tuple[int, int]) -> int:
    """Choose the height of text: always large enough to read, and so on a large picture shown smaller too."""
    return round(10 + max(0, min(size) - 300) / 60)


def _clip(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    left, right = (min(max(x, 0), width - 1) for x in (box[0], box[2]))
    top, bottom = (min(max(y, 0), height - 1) for y in (box[1], box[3]))
    return left, top, max(left, right), max(top, bottom)


def _rectangle(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """Draw a box's outline between two dark rims, which show it on ground of its own colour."""
    rim = max(1, round(width / 3))
    left, top, right, bottom = box
    draw.rectangle((left - rim, top - rim, right + rim, bottom + rim), outline=BLACK, width=width + 2 * rim)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def _places(
    boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], picture: tuple[int, int]
) -> list[Box]:
    """Place a plate of each size at its box: on the picture and, where there is room, off those before it."""
    placed: list[Box] = []
    for (left, top, right, bottom), (width, height) in zip(boxes, sizes, strict=True):
        corners = [
            (left, top - height),
            (left, top),
            (right - width, top - height),
            (left, bottom),
            (right - width, top),
            (left, bottom - height),
            (right - width, bottom),
        ]
        candidates = [_moved_inside(corner, (width, height), picture) for corner in corners]
        placed.append(min(candidates, key=lambda plate: sum(_overlap(plate, other) for other in placed)))
    return placed


def _moved_inside(corner: tuple[float, float], size: tuple[float, float], picture: tuple[int, int]) -> Box:
    left, top = (max(0, min(at, whole - own)) for at, own, whole in zip(corner, size, picture, strict=True))
    return left, top, left + size[0], top + size[1]


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)
