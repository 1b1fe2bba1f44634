import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.image import PictureError, class_colour, draw_boxes, read_picture, squash

pytestmark = pytest.mark.unit

COLOUR = (200, 100, 50)
GREY = 124


def stored(picture: Image.Image, kind: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def plain(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (7, 5), COLOUR).convert(mode)


def grey16(dtype: str = "uint16") -> np.ndarray:
    return np.full((5, 7), GREY * 257, dtype=dtype)


# Kinds of pictures

KINDS = [
    (plain(), "PNG", {}, COLOUR),
    (plain(), "JPEG", {"quality": 100}, COLOUR),
    (plain("L"), "PNG", {}, (GREY,) * 3),
    (plain("LA"), "PNG", {}, (GREY,) * 3),
    (plain("RGBA"), "PNG", {}, COLOUR),
    (plain("CMYK"), "JPEG", {"quality": 100}, COLOUR),
    (plain("CMYK"), "TIFF", {}, COLOUR),
    (plain("YCbCr"), "TIFF", {}, COLOUR),
    (plain().quantize(4), "PNG", {}, COLOUR),
    (plain().quantize(4), "PNG", {"transparency": bytes([0, 128, 255])}, COLOUR),
    (plain().quantize(4), "GIF", {"transparency": 0}, COLOUR),
    (plain(), "PNG", {"transparency": COLOUR}, COLOUR),
    (Image.new("RGBA", (7, 5), (*COLOUR, 0)), "PNG", {}, COLOUR),
    (Image.new("1", (7, 5), 1), "PNG", {}, (255,) * 3),
    (plain(), "WEBP", {"lossless": True}, COLOUR),
    (plain(), "BMP", {}, COLOUR),
    # The first frame of an animation; the upper 8 of 16 bits per channel.
    (plain(), "PNG", {"save_all": True, "append_images": [Image.new("RGB", (7, 5), "blue")]}, COLOUR),
    (Image.fromarray(grey16()), "PNG", {}, (GREY,) * 3),
    (Image.fromarray(grey16()), "TIFF", {}, (GREY,) * 3),
    (Image.frombytes("I;16B", (7, 5), grey16(">u2").tobytes()), "TIFF", {}, (GREY,) * 3),
    (Image.fromarray(grey16()), "PPM", {}, (GREY,) * 3),  # Pillow opens it as 32-bit integers
]


@pytest.mark.parametrize(("picture", "kind", "options", "colour"), KINDS)
def test_any_kind_becomes_rgb(picture: Image.Image, kind: str, options: dict, colour: tuple[int, ...]):
    read = read_picture(stored(picture, kind, **options))
    assert (read.mode, read.size) == ("RGB", (7, 5))
    assert np.abs(np.asarray(read, dtype=int) - colour).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_a_channel_are_refused(kind: type):
    file = stored(Image.fromarray(np.full((5, 7), 70000, dtype=kind)), "TIFF")
    with pytest.raises(PictureError, match=r"it can't be read .*32 bits .*\(mode [IF]\) have no range"):
        read_picture(file, "it")


@pytest.mark.parametrize("picture", [plain(), plain("L"), plain("P"), Image.fromarray(grey16())])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(picture: Image.Image, orientation: int):
    marked = picture.copy()
    marked.putpixel((0, 0), 0)  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = np.asarray(read_picture(stored(marked, "PNG", exif=exif)))
    height, width = read.shape[:2]
    assert (width, height) == ((7, 5) if orientation <= 4 else (5, 7))
    # Where the stored top-left corner appears, in the EXIF specification's numbering.
    left, right, top, bottom = 0, width - 1, 0, height - 1
    corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
    darkest = np.unravel_index(read.sum(axis=2).argmin(), (height, width))
    assert darkest == corners[(orientation - 1) % 4]
    as_stored = np.asarray(read_picture(stored(marked, "PNG", exif=exif), upright=False))
    assert as_stored.shape == (5, 7, 3)
    assert as_stored[0, 0].sum() == as_stored.sum(axis=2).min()


# What isn't a picture


WHOLE_JPEG = stored(Image.effect_noise((300, 300), 50), "JPEG").read()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], r"can't be read as a picture \(.*truncated"),
        (b"no picture", "is no picture of a known kind; save it as JPEG or PNG"),
        (None, r"can't be read as a picture \(.*No such file"),
    ],
)
def test_a_broken_picture_is_named(content: bytes | None, reason: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PictureError, match=f"^{tmp_path}/a.jpg {reason}"):
        read_picture(tmp_path / "a.jpg")


def test_a_pipe_is_refused_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(PictureError, match="is no regular file"):
        read_picture(tmp_path / "a.jpg")


def test_a_picture_too_large_to_be_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match=r"bomb\.png.*exceeds limit"):
        read_picture(stored(plain(), "PNG"), "bomb.png")


# Input of the network


def test_squash_equals_torchs_antialiased_resize():
    values = np.random.RandomState(0).randint(0, 256, (480, 640, 3), dtype=np.uint8)
    found = np.asarray(squash(Image.fromarray(values)), dtype=np.float32)
    images = torch.from_numpy(values).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(images, (300, 300), mode="bilinear", antialias=True)[0]
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1


# Drawing


@pytest.mark.parametrize("ground", ["black", "white", class_colour(4)])
def test_a_box_is_drawn_in_its_classs_colour_between_dark_rims_and_its_inside_left_alone(ground: object):
    picture = Image.new("RGB", (300, 300), ground)
    draw_boxes(picture, [[50, 100, 250, 280]], [4], [""])
    assert [picture.getpixel((x, 200)) for x in (49, 50, 51)] == [(0, 0, 0), class_colour(4), (0, 0, 0)]
    untouched = Image.new("RGB", (1, 1), ground).getpixel((0, 0))
    assert picture.getpixel((48, 200)) == picture.getpixel((150, 200)) == untouched
    draw_boxes(picture, [[50, 100, 250, 280], [100, 50, 200, 290]], [1, 2], ["", ""])
    assert picture.getpixel((100, 200)) == class_colour(2)
    assert picture.getpixel((100, 100)) == class_colour(1)  # where boxes cross, the better one is on top


def test_plates_stand_above_their_boxes_on_the_picture_the_better_one_on_top():
    picture = Image.new("RGB", (640, 480))
    draw_boxes(picture, [[200, 200, 400, 300]] * 2 + [[600, 0, 639, 90]], [1, 2, 3], ["dog 0.98"] * 3)
    pixels = np.asarray(picture)
    first, second, third = ((pixels == class_colour(label)).all(axis=2) for label in (1, 2, 3))
    assert first[180:200].sum() > 300
    assert not second.any()
    assert third[:14, 540:600].sum() > 100  # it was moved down and to the left


@pytest.mark.parametrize("size", [(300, 300), (1, 1), (3, 900)])
def test_boxes_off_the_picture_are_clipped_to_it(size: tuple[int, int]):
    picture = Image.new("RGB", size)
    for box in ([-50, -50, 400, 400], [290, 290, 310, 310], [400, 400, 500, 500], [9, 9, 9, 9]):
        draw_boxes(picture, [box], [1], ["a rather long name 0.99"])
    assert picture.size == size


def test_colours_of_neighbouring_labels_differ_much_and_no_two_are_the_same():
    colours = np.array([class_colour(label) for label in range(1, 81)])
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100
    assert len(np.unique(colours, axis=0)) == 80
