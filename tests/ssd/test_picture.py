import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD
from ssd.image import PictureError, centre_crop, normalize, read_picture, squash

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


def grey16(value: int = GREY * 257) -> Image.Image:
    return Image.fromarray(np.full((5, 7), value, dtype=np.uint16))


def colour_of(file: io.BytesIO) -> tuple[int, ...]:
    picture = read_picture(file, "it")
    assert (picture.mode, picture.size) == ("RGB", (7, 5))
    values = np.asarray(picture).reshape(-1, 3)
    assert (values == values[0]).all()
    return tuple(values[0].tolist())


# Kinds of pictures


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (stored(plain(), "PNG"), COLOUR),
        (stored(plain(), "JPEG", quality=100), COLOUR),
        (stored(plain("L"), "PNG"), (GREY,) * 3),
        (stored(plain("LA"), "PNG"), (GREY,) * 3),
        (stored(plain("RGBA"), "PNG"), COLOUR),
        (stored(plain("CMYK"), "JPEG", quality=100), COLOUR),
        (stored(plain("CMYK"), "TIFF"), COLOUR),
        (stored(plain("YCbCr"), "TIFF"), COLOUR),
        (stored(plain().quantize(4), "PNG"), COLOUR),
        (stored(plain().quantize(4), "PNG", transparency=bytes([0, 128, 255])), COLOUR),
        (stored(plain().quantize(4), "GIF", transparency=0), COLOUR),
        (stored(plain(), "PNG", transparency=COLOUR), COLOUR),
        (stored(Image.new("RGBA", (7, 5), (*COLOUR, 0)), "PNG"), COLOUR),
        (stored(Image.new("1", (7, 5), 1), "PNG"), (255,) * 3),
        (stored(plain(), "WEBP", lossless=True), COLOUR),
        (stored(plain(), "BMP"), COLOUR),
    ],
)
def test_any_kind_becomes_rgb(file: io.BytesIO, expected: tuple[int, ...]):
    assert np.abs(np.subtract(colour_of(file), expected)).max() <= 1


@pytest.mark.parametrize(
    "file",
    [
        stored(grey16(), "PNG"),
        stored(grey16(), "TIFF"),
        io.BytesIO(b"P5 7 5 65535\n" + np.full((5, 7), GREY * 257, dtype=">u2").tobytes()),
        stored(Image.frombytes("I;16B", (7, 5), np.full((5, 7), GREY * 257, dtype=">u2").tobytes()), "TIFF"),
    ],
)
def test_of_16_bit_grey_the_upper_8_stay(file: io.BytesIO):
    assert colour_of(file) == (GREY,) * 3


def test_16_bit_grey_as_old_pillows_open_it(monkeypatch: pytest.MonkeyPatch):
    """As mode I, 32-bit integers, which Pillow's own conversion would clip to white."""
    picture = Image.fromarray(np.full((5, 7), GREY * 257, dtype=np.int32))
    picture.format = "PNG"
    monkeypatch.setattr(Image, "open", lambda _: picture)
    assert colour_of(io.BytesIO()) == (GREY,) * 3


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_a_channel_are_refused(kind: type):
    file = stored(Image.fromarray(np.full((5, 7), 70000, dtype=kind)), "TIFF")
    with pytest.raises(PictureError, match=r"it: its 32 bits a channel \(mode [IF]\) have no range"):
        read_picture(file, "it")


@pytest.mark.parametrize("picture", [plain(), plain("L"), plain("P"), grey16()])
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


def test_of_a_moving_picture_the_first_frame_is_read():
    later = Image.new("RGB", (7, 5), (0, 0, 255))
    assert colour_of(stored(plain(), "PNG", save_all=True, append_images=[later])) == COLOUR


# What is none


def test_a_broken_picture_is_named(tmp_path: Path):
    whole = stored(Image.effect_noise((300, 300), 50), "JPEG").read()
    broken = {
        "truncated.jpg": (whole[: len(whole) // 2], "truncated"),
        "text.jpg": (b"no picture", "no picture of a known kind"),
        "empty.jpg": (b"", "no picture of a known kind"),
    }
    for name, (content, reason) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PictureError, match=f"{name}.*{reason}"):
            read_picture(tmp_path / name)
    with pytest.raises(PictureError, match=r"gone\.jpg does not exist"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(PictureError, match="can't be read"):
        read_picture(tmp_path)


def test_a_picture_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    (tmp_path / "bomb.png").write_bytes(stored(plain(), "PNG").read())
    with pytest.raises(PictureError, match=r"bomb\.png.*exceeds limit"):
        read_picture(tmp_path / "bomb.png")


# To 300×300


def literal_centre_crop(picture: Image.Image) -> Image.Image:
    """As the hub page has it: all of the picture resized, then cut."""
    width, height = picture.size
    short = min(width, height)
    resized = picture.resize((width * 300 // short, height * 300 // short), Image.Resampling.BILINEAR)
    left, top = resized.width // 2 - 150, resized.height // 2 - 150
    return resized.crop((left, top, left + 300, top + 300))


@pytest.mark.parametrize(
    "size",
    [
        (640, 480),
        (480, 641),
        (300, 300),
        (301, 300),
        (299, 1000),
        (20, 30),
        (7, 5),
        (1000, 999),
        (1, 9),
        (1, 1),
    ],
)
def test_centre_crop_equals_resizing_all_and_cutting(size: tuple[int, int]):
    values = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    found = np.asarray(centre_crop(picture), dtype=int)
    assert found.shape == (300, 300, 3)
    assert np.abs(found - np.asarray(literal_centre_crop(picture), dtype=int)).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000), (1, 20000), (20000, 1)])
@pytest.mark.parametrize("fit", [centre_crop, squash])
def test_extreme_proportions_keep_their_colour(fit, size: tuple[int, int]):
    values = np.asarray(fit(Image.new("RGB", size, COLOUR)))
    assert values.shape == (300, 300, 3)
    assert (values == COLOUR).all()


def test_the_middle_is_what_is_cut_out_of_a_very_tall_picture():
    values = np.zeros((5000, 3, 3), dtype=np.uint8)
    values[2499:2501] = 255  # the middle square reaches from 2498.5 to 2501.5
    found = np.asarray(centre_crop(Image.fromarray(values)))[:, 150, 0]
    assert found[100:200].min() == 255
    assert found[0] == found[-1] <= 2


def test_squash_takes_the_whole_picture():
    values = np.zeros((600, 900, 3), dtype=np.uint8)
    values[:, 450:] = 255
    found = np.asarray(squash(Image.fromarray(values)))
    assert found.shape == (300, 300, 3)
    assert found[:, :149].max() == 0
    assert found[:, 151:].min() == 255


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
    for channel in range(3):
        expected = (pictures[..., channel] - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-6)
