"""The image files of a split: those that training can't use, and what is worth knowing of the others."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.doctor.entries import ListedImage
from data.doctor.findings import Finding, Kind
from data.pictures import UPRIGHT, ImageDefect, Level, inspect_all, orientation

KINDS = {
    "missing": Kind.file_missing,
    "no file": Kind.file_unreadable,
    "unreadable": Kind.file_unreadable,
    "empty": Kind.file_empty,
    "not an image": Kind.not_an_image,
    "unsupported format": Kind.unsupported_format,
    "too many pixels": Kind.too_many_pixels,
    "size unlike": Kind.size_unlike,
    "undecodable": Kind.undecodable,
}
"""What a data.pictures.ImageDefect is called here."""

MOVING_FORMATS = ("PNG", "WEBP")  # of those that DALI reads; a TIFF's pages and a phone's MPO do not move


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to be looked at: the image entry that lists it, and its path."""

    image: ListedImage
    path: str


def check_files(files: Sequence[ImageFile], threads: int, report: Callable[[int], None]) -> Iterator[Finding]:
    """Decode every picture; yield what is wrong, by file. report: called with how many more are done."""
    sizes_px = np.array([file.image.size_px for file in files], dtype=np.int64).reshape(-1, 2)
    defects = inspect_all([file.path for file in files], sizes_px, Level.full, threads, report)
    for place, file in enumerate(files):
        if place in defects:
            yield _finding(file, defects[place])
        else:
            yield from _peculiarities(file)


def check_links(files: Sequence[ImageFile], folder: Path) -> Iterator[Finding]:
    """Yield a finding for every file that lies elsewhere, because it or a folder above it is a link."""
    inside = os.path.join(os.path.realpath(folder), "")
    real_folders: dict[str, str] = {}
    for file in files:
        above, name = os.path.split(file.path)
        if above not in real_folders:
            real_folders[above] = os.path.realpath(above)
        real = os.path.join(real_folders[above], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not real.startswith(inside):
            yield Finding(
                Kind.link_leaves_folder, file.path, f"{file.image.where}: it lies at {_shown(real)}"
            )


def find_unlisted(folder: Path, listed: set[str]) -> Iterator[Finding]:
    """Yield a finding for each file under the folder that no entry names. listed: paths, normalised."""
    for above, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.normpath(os.path.join(above, name))
            if path not in listed:
                yield Finding(Kind.file_not_listed, _shown(path), "no entry of `images` names it")


def _shown(path: str) -> str:
    """Return a path of the disk as text that can be written: its bytes need not be UTF-8."""
    return path.encode(errors="backslashreplace").decode()


def _finding(file: ImageFile, defect: ImageDefect) -> Finding:
    return Finding(KINDS[defect.kind], file.path, f"{file.image.where}: {defect.detail}")


def _peculiarities(file: ImageFile) -> Iterator[Finding]:
    """Yield what a picture that training reads holds besides pixels."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file.path) as picture:
            moves = picture.format in MOVING_FORMATS and getattr(picture, "is_animated", False)
            frames = getattr(picture, "n_frames", 1)
            held = orientation(picture)
    except Exception as error:  # Pillow's readers raise almost anything; DALI has decoded the picture
        yield Finding(Kind.exif_unreadable, file.path, f"{file.image.where}: {error}")
        return
    if moves:
        yield Finding(Kind.animated, file.path, f"{file.image.where}: it has {frames} frames")
    if held != UPRIGHT:
        detail = f"{file.image.where}: orientation {held} of 1 to 8, where 1 is upright"
        yield Finding(Kind.exif_rotation, file.path, detail)
