"""A picture file as people have them, of any kind and size → what a person sees → what the network takes.

For pictures outside a data set. Those of a data set go through DALI, which squashes by the same rule (an
antialiased linear resize; the two differ by at most a few of 255 steps) but never turns a picture.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .batches import IMAGENET_MEAN, IMAGENET_STD
from .boxes import IMAGE_SIZE
from .errors import UserError


class PictureError(UserError):
    """A picture that can't be read; the message says which and why."""


def read_picture(file: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read a picture as RGB, turned upright as its EXIF orientation has it, its first frame if it moves.

    Transparency is dropped, as DALI does; 16 bits a channel become 8. name: of the source in the error.
    Raises PictureError where it is missing, truncated, no picture, too large (Pillow's limit of 179 million
    pixels), or of a kind without a range of brightness (32-bit integers and floats).
    """
    name = name or str(file)
    try:
        with Image.open(file) as opened:
            if opened.mode in ("I", "F"):
                raise PictureError(f"{name}: pixels of kind {opened.mode!r} have no range; save it as RGB")
            opened.load()
            return _as_rgb(ImageOps.exif_transpose(opened))
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name} does not exist") from error
    # Pillow's decoders raise almost anything on a broken file, DecompressionBombError among it.
    except Exception as error:
        raise PictureError(f"{name} can't be read as a picture ({error})") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        upper_bits = np.asarray(picture, dtype=np.uint16) >> 8  # convert() would clip at 255
        return Image.fromarray(upper_bits.astype(np.uint8)).convert("RGB")
    if "transparency" in picture.info:
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")


def squash(picture: Image.Image) -> Image.Image:
    """Resize to 300×300 whatever the proportions, as the network was trained (RECIPE 6)."""
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)


def normalize(pictures: NDArray[np.floating]) -> Tensor:
    """Turn RGB values in [0, 1], N×300×300×3, into the network's input N×3×300×300 float32 (RECIPE 1)."""
    mean = torch.tensor(IMAGENET_MEAN)
    std = torch.tensor(IMAGENET_STD)
    values = torch.from_numpy(np.asarray(pictures, dtype=np.float32))
    return ((values - mean) / std).permute(0, 3, 1, 2)
