"""A picture file as people have them, of any kind and size → what a person sees → what the network takes.

For pictures outside a data set. Those of a data set go through DALI, which squashes by the same rule (an
antialiased linear resize; the two differ by at most a few of 255 steps) but never turns a picture.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .batches import IMAGENET_MEAN, IMAGENET_STD
from .boxes import IMAGE_SIZE
from .errors import UserError

# What Pillow opens as 32-bit integers there has 16 bits: grey PNGs in its older versions, PGMs to this day.
_FORMATS_WITHOUT_32_BITS = ("PNG", "PPM")


class PictureError(UserError):
    """A picture that can't be read; the message says which and why."""


def read_picture(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read a picture as RGB, turned upright as its EXIF orientation has it, its first frame if it moves.

    Transparency is dropped, as DALI does; of 16 bits a channel the upper 8 stay. name: what errors call it.
    Raises PictureError where it is missing, truncated, no picture, too large (Pillow's limit of 179 million
    pixels), or of a kind without a range of brightness (32-bit integers and floats).
    """
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            if opened.mode == "F" or (opened.mode == "I" and opened.format not in _FORMATS_WITHOUT_32_BITS):
                raise PictureError(
                    f"{name}: its 32 bits a channel (mode {opened.mode}) have no range; save it with 8"
                )
            opened.load()
            return _as_rgb(ImageOps.exif_transpose(opened))
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name} is no picture of a known kind; save it as JPEG or PNG") from error
    # Pillow's decoders raise almost anything on a broken file, DecompressionBombError among it.
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
    """Cut the middle 300×300 out of the picture resized so that its short side is 300.

    What is cut off is never made, so that a picture of any proportions takes no more memory than another.
    """
    width, height = picture.size
    short = min(width, height)
    left, right = _middle(width, short)
    top, bottom = _middle(height, short)
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=(left, top, right, bottom))


def _middle(side: int, short: int) -> tuple[float, float]:
    """Say from where to where along a side, in pixels of the picture, its middle 300 after resizing reach."""
    resized = side * IMAGE_SIZE // short
    start = resized // 2 - IMAGE_SIZE // 2
    return start * side / resized, (start + IMAGE_SIZE) * side / resized


def squash(picture: Image.Image) -> Image.Image:
    """Resize to 300×300 whatever the proportions, as the network was trained (RECIPE 6)."""
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)


def normalize(pictures: NDArray[np.floating]) -> Tensor:
    """Turn RGB values in [0, 1], N×300×300×3, into the network's input N×3×300×300 float32 (RECIPE 1)."""
    mean = torch.tensor(IMAGENET_MEAN)
    std = torch.tensor(IMAGENET_STD)
    values = torch.from_numpy(np.asarray(pictures, dtype=np.float32))
    return ((values - mean) / std).permute(0, 3, 1, 2)
