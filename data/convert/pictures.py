"""Picture files: which lie in a folder, and what their headers say. No pixel is decoded here."""

import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from data.convert.dataset import Header
from data.convert.findings import Findings
from data.pictures import UPRIGHT, hint_of_backslashes, orientation
from ssd.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the names of a folder's files, relative to it and sorted; sub-folders count, hidden files don't.

    suffixes: in lower case; those of the files may be in any case.
    """
    found = []
    for directory, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        relative = Path(directory).relative_to(folder)
        found += [
            (relative / name).as_posix()
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found)


def read_header(file: Path, findings: Findings) -> Header:
    """Return what the picture's header says; raise UserError where it is missing or no picture.

    Boxes are of the pixels as stored, as training reads them: an EXIF rotation is told to the findings.
    """
    try:
        # Pillow warns of large pictures; an absurd size it refuses.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            if orientation(image) != UPRIGHT:
                findings.count("pictures are to be shown turned (EXIF); boxes are taken as unturned", file)
            return Header(image.width, image.height, len(image.getbands()))
    except UnidentifiedImageError as error:
        raise UserError(f"{file} is no picture that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's readers raise almost anything on a broken header
        reason = getattr(error, "strerror", None) or error
        hint = hint_of_backslashes(str(file))
        raise UserError(f"{file} cannot be read ({reason}{hint}); replace or remove it") from error


def check_size(header: Header, width: int, height: int) -> None:
    """Raise UserError where an annotation was made for another size than the picture has."""
    if (header.width, header.height) != (width, height):
        raise UserError(
            f"says the picture has {width}×{height} pixels, its file has {header.width}×{header.height}; "
            "correct the size, or put the picture there that the boxes were drawn on"
        )
