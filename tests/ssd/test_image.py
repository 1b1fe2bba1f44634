import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD
from ssd.image import PictureError, centre_crop, class_colour, draw_boxes, normalize, read_picture, squash

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


def grey16(dtype: str = "uint16") -> NDArray[np.generic]:
    return np.full((5, 7), GREY * 257, dtype=dtype)


def colour_of(file: io.BytesIO) -> tuple[int, ...]:
    picture = read_picture(file, "it")
    assert (picture.mode, picture.size) == ("RGB", (7, 5))
    ((_, colour),) = picture.getcolors()  # it has one alone
    return colour


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
    # Of a moving picture the first frame; of 16 bits a channel the upper 8.
    (plain(), "PNG", {"save_all": True, "append_images": [Image.new("RGB", (7, 5), "blue")]}, COLOUR),
    (Image.fromarray(grey16()), "PNG", {}, (GREY,) * 3),
    (Image.fromarray(grey16()), "TIFF", {}, (GREY,) * 3),
    (Image.frombytes("I;16B", (7, 5), grey16(">u2").tobytes()), "TIFF", {}, (GREY,) * 3),
]


@pytest.mark.parametrize(("picture", "kind", "options", "colour"), KINDS)
def test_any_kind_becomes_rgb(picture: Image.Image, kind: str, options: dict, colour: tuple[int, ...]):
    assert np.abs(np.subtract(colour_of(stored(picture, kind, **options)), colour)).max() <= 1


def test_16_bit_grey_that_pillow_opens_as_32_bit_integers():
    """A PGM, which its own conversion would clip to white."""
    assert colour_of(io.BytesIO(b"P5 7 5 65535\n" + grey16(">u2").tobytes())) == (GREY,) * 3


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_a_channel_are_refused(kind: type):
    file = stored(Image.fromarray(np.full((5, 7), 70000, dtype=kind)), "TIFF")
    with pytest.raises(PictureError, match=r"it: its 32 bits a channel \(mode [IF]\) have no range"):
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
    # Where the stored top left is seen, as the EXIF specification numbers it.
    left, right, top, bottom = 0, width - 1, 0, height - 1
    corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
    darkest = np.unravel_index(read.sum(axis=2).argmin(), (height, width))
    assert darkest == corners[(orientation - 1) % 4]
    as_stored = np.asarray(read_picture(stored(marked, "PNG", exif=exif), upright=False))
    assert as_stored.shape == (5, 7, 3)
    assert as_stored[0, 0].sum() == as_stored.sum(axis=2).min()


# What is none


WHOLE_JPEG = stored(Image.effect_noise((300, 300), 50), "JPEG").read()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("truncated.jpg", WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "truncated"),
        ("text.jpg", b"no picture", "no picture of a known kind"),
        ("empty.jpg", b"", "no picture of a known kind"),
        ("gone.jpg", None, "does not exist"),
        (".", None, "is no regular file"),
        ("fifo.jpg", None, "is no regular file"),
    ],
)
def test_a_broken_picture_is_named(tmp_path: Path, name: str, content: bytes | None, reason: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "fifo.jpg")
    with pytest.raises(PictureError, match=f"{tmp_path / name}.*{reason}"):
        read_picture(tmp_path / name)


def test_a_picture_too_large_to_be_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match=r"bomb\.png.*exceeds limit"):
        read_picture(stored(plain(), "PNG"), "bomb.png")


# To 300×300


def literal_centre_crop(picture: Image.Image) -> Image.Image:
    """As the hub page has it: all of the picture resized, then cut."""
    width, height = picture.size
    short = min(width, height)
    resized = picture.resize((width * 300 // short, height * 300 // short), Image.Resampling.BILINEAR)
    left, top = resized.width // 2 - 150, resized.height // 2 - 150
    return resized.crop((left, top, left + 300, top + 300))


ODD_SIZES = [(640, 480), (480, 641), (300, 300), (301, 300), (299, 1000), (20, 30), (7, 5), (1, 9), (1, 1)]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_centre_crop_equals_resizing_all_and_cutting(size: tuple[int, int]):
    values = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    found = np.asarray(centre_crop(picture), dtype=int)
    assert found.shape == (300, 300, 3)
    assert np.abs(found - np.asarray(literal_centre_crop(picture), dtype=int)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (1, 20000)])
@pytest.mark.parametrize("fit", [centre_crop, squash])
def test_extreme_proportions_keep_their_colour(fit, size: tuple[int, int]):
    values = np.asarray(fit(Image.new("RGB", size, COLOUR)))
    assert values.shape == (300, 300, 3)
    assert (values == COLOUR).all()


def test_squash_equals_torchs_antialiased_resize():
    values = np.random.RandomState(0).randint(0, 256, (480, 640, 3), dtype=np.uint8)
    found = np.asarray(squash(Image.fromarray(values)), dtype=np.float32)
    images = torch.from_numpy(values).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(images, (300, 300), mode="bilinear", antialias=True)[0]
    assert np.abs(found - expected.permute(1, 2, 0).numpy()).max() <= 1


# To the network


def test_normalized_values_are_imagenets():
    pictures = np.random.RandomState(0).random_sample((2, 300, 300, 3)).astype(np.float32)
    found = normalize(pictures)
    assert (found.shape, found.dtype) == ((2, 3, 300, 300), torch.float32)
    expected = (pictures - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), atol=1e-6)


# Drawing


@pytest.mark.parametrize("ground", ["black", "white", class_colour(4)])
def test_a_box_is_drawn_in_its_classs_colour_between_dark_rims_and_its_inside_left_alone(ground: object):
    picture = Image.new("RGB", (300, 300), ground)
    draw_boxes(picture, [[50, 100, 250, 280]], [4], [""])
    assert [picture.getpixel((x, 200)) for x in (49, 50, 51)] == [(0, 0, 0), class_colour(4), (0, 0, 0)]
    untouched = Image.new("RGB", (1, 1), ground).getpixel((0, 0))
    assert picture.getpixel((48, 200)) == picture.getpixel((150, 200)) == untouched


def test_of_crossing_boxes_the_better_one_is_on_top():
    picture = Image.new("RGB", (300, 300))
    draw_boxes(picture, [[50, 100, 250, 280], [100, 50, 200, 290]], [1, 2], ["", ""])
    assert picture.getpixel((100, 100)) == class_colour(1)


def test_plates_stand_above_their_boxes_on_the_picture_the_better_one_on_top():
    picture = Image.new("RGB", (640, 480))
    draw_boxes(picture, [[200, 200, 400, 300]] * 2 + [[600, 0, 639, 90]], [1, 2, 3], ["dog 0.98"] * 3)
    pixels = np.asarray(picture)
    first, second, third = ((pixels == class_colour(label)).all(axis=2) for label in (1, 2, 3))
    assert first[180:200].sum() > 300
    assert not second.any()
    assert third[:14, 540:600].sum() > 100  # moved down and to the left


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
