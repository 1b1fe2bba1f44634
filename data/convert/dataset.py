"""What the formats share: the data set between reading and writing, findings, and the files of both sides."""

import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from data.pictures import UPRIGHT, orientation
from ssd.errors import UserError

Item = TypeVar("Item")
Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
"""What files and folders of a split are called."""
Ltwh = tuple[float, float, float, float]

EXACT_DECIMALS = 6
"""Decimals of a pixel that are written to COCO; a smaller difference is float noise."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CLASSES_FILE = "classes.txt"
"""Category names, one a line, in the order of their ids: written, and read where the source has one."""
LINKS: dict[str, Callable[[Path, Path], object]] = {
    "hard": os.link,
    "symlink": os.symlink,
    "copy": shutil.copy2,
}
"""How a picture gets into the new folder, by the value of --link."""
LISTED_DEFECTS = 20


@dataclass(frozen=True)
class Box:
    """An object; crowd: evaluation counts it neither as a hit nor as a miss."""

    category: str
    ltwh_px: Ltwh
    crowd: bool = False


@dataclass(frozen=True)
class Finding:
    """What a conversion met or did, where, and by how many pixels; a defect ends the conversion."""

    what: str
    where: object = None
    px: float = 0.0
    defect: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture: its file, its posix path in the split's folder, what its header says, its boxes.

    Size and boxes are of the pixels as stored, as in training. findings: of the file and its objects.
    """

    file: Path
    name: str
    width: int
    height: int
    channels: int
    boxes: list[Box] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The name without its suffix, folders kept: what its annotation file is called."""
        return os.path.splitext(self.name)[0]

    def add(self, box: Box, where: str) -> None:
        """Add a box, cut at the picture's edges; raise UserError where none of its area lies inside.

        What hangs over is taken off the size, as training does it: a box inside keeps its exact numbers.
        """
        left, top, width, height = box.ltwh_px
        over_left, over_right = max(-left, 0.0), max(left + width - self.width, 0.0)
        over_top, over_bottom = max(-top, 0.0), max(top + height - self.height, 0.0)
        over_px = max(over_left, over_right, over_top, over_bottom)
        if hangs_over := over_px > 10**-EXACT_DECIMALS:
            left, top = max(left, 0.0), max(top, 0.0)
            width, height = width - over_left - over_right, height - over_top - over_bottom
        if not (width > 0 and height > 0):  # as is NaN, the rest of an infinite side
            raise UserError(
                f"box (left, top, width, height) {box.ltwh_px} px has no area inside the picture of "
                f"{self.width}×{self.height}; correct or remove it"
            )
        self.boxes.append(Box(box.category, (left, top, width, height), box.crowd))
        if hangs_over:
            what = "boxes hung over an edge of their picture and were cut there"
            self.findings.append(Finding(what, where, over_px))


@dataclass(frozen=True)
class DataSet:
    """Category names in the order of their ids; pictures by split. A source may lack `val` and `test`."""

    categories: tuple[str, ...]
    splits: dict[Split, list[Picture]]


@contextmanager
def defects_into(findings: list[Finding], where: object) -> Iterator[None]:
    """Make a UserError of the block, which it ends, a defect among the findings."""
    try:
        yield
    except UserError as error:
        what = str(error).removeprefix(f"{where}: ")  # with which a file that can't be read begins
        findings.append(Finding(what, where, defect=True))


@contextmanager
def unless_test(split: Split, findings: list[Finding]) -> Iterator[None]:
    """Leave out a test split that the block finds no annotations of, as many sets have one, and say so."""
    try:
        yield
    except UserError as error:
        if split != "test":
            raise
        findings.append(Finding(f"test split left out: {error}"))


def gather(
    source: Path, findings: Sequence[Finding], splits: Mapping[Split, Sequence[Picture]]
) -> list[Finding]:
    """Return these findings and the pictures'; raise one UserError that lists the defects, if any."""
    pictures = [picture for split in splits.values() for picture in split]
    findings = [*findings, *(finding for picture in pictures for finding in picture.findings)]
    defects = [f"{finding.where}: {finding.what}" for finding in findings if finding.defect]
    if len(defects) == 1:
        raise UserError(defects[0])
    if defects:
        lines = [f"{source}: {len(defects)} problems, nothing was written:", *defects[:LISTED_DEFECTS]]
        if len(defects) > LISTED_DEFECTS:
            lines.append(f"… and {len(defects) - LISTED_DEFECTS} more")
        raise UserError("\n  ".join(lines))
    return findings


def open_picture(file: Path, name: str, size_px: tuple[float, float] | None = None) -> Picture:
    """Return a picture without boxes; raise UserError where it cannot be read or has another size.

    size_px: width and height as the annotations say, None if they don't.
    """
    try:
        # Pillow warns of large pictures; an absurd size it refuses.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            turned = orientation(image) != UPRIGHT
            picture = Picture(file, name, image.width, image.height, len(image.getbands()))
    except UnidentifiedImageError as error:
        raise UserError(f"{file} is no picture that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's readers raise almost anything on a broken header
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read ({reason}); replace or remove it") from error
    if size_px is not None and size_px != (picture.width, picture.height):
        raise UserError(
            f"says the picture has {size_px[0]:g}×{size_px[1]:g} pixels, its file has {picture.width}×"
            f"{picture.height}; correct the size, or put the picture there that the boxes were drawn on"
        )
    if turned:
        what = "pictures are to be shown turned (EXIF); boxes are taken as unturned"
        picture.findings.append(Finding(what, file))
    return picture


def number(text: str, what: str) -> float:
    """Return a finite number, or raise UserError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{what} {text!r} is no number; correct it")
    return value


def check_names(names: Sequence[str], where: object) -> tuple[str, ...]:
    """Return category names: at least one, none twice, each fit to be a line of a classes file.

    Raises UserError.
    """
    if not names:
        raise UserError(f"{where}: no category name; write one a line into a file and give --classes FILE")
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable() or names.index(name) < index:
            raise UserError(
                f"{where}: name {index}, {name!r}, stands there twice, is blank, or has a space at an end or "
                "a character that cannot be printed; rename it"
            )
    return tuple(names)


def read_names(classes_file: Path) -> tuple[str, ...]:
    """Return the names of a classes file; blank lines at its end don't count. Raises UserError."""
    lines = read_lines(classes_file)
    while lines and not lines[-1]:
        lines.pop()
    return check_names(lines, classes_file)


def read_lines(file: Path) -> list[str]:
    """Return a text file's lines without white space at both ends or a byte-order mark; raise UserError."""
    try:
        return [line.strip() for line in read_bytes(file).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is no UTF-8 text; save it as UTF-8") from error


def read_bytes(file: Path) -> bytes:
    """Return a file's content; raise UserError where it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it a readable file") from error


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the posix paths of a folder's files, sub-folders included and hidden ones not, sorted.

    suffixes: in lower case; those of the files may be in any case.
    """
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def place_pictures(pictures: Sequence[Picture], folder: Path, link: str) -> None:
    """Put pictures into a folder under their names, unchanged; raise UserError where that cannot be."""
    for picture in shown(pictures, f"pictures into {folder.name}"):
        target = folder / picture.name
        if os.path.lexists(target):
            raise UserError(f"{picture.file}: another picture is {picture.name} too; rename or remove one")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            LINKS[link](picture.file.resolve(), target)  # a hard link to a relative symlink points nowhere
        except OSError as error:
            raise UserError(
                f"{picture.file}: --link {link} to {picture.name} failed ({error.strerror}); "
                f"give --link {'symlink or copy' if link == 'hard' else 'copy'}, or make room"
            ) from error


def write_annotations(text: str, folder: Path, suffix: str, picture: Picture) -> None:
    """Write a picture's annotation file; raise UserError where another picture has the same one."""
    file = folder / f"{picture.stem}{suffix}"
    if file.exists():
        raise UserError(
            f"{picture.file}: another picture has the annotation file {picture.stem}{suffix} too; rename one"
        )
    write_text(file, text)


def write_names(names: Sequence[str], folder: Path) -> None:
    """Write the classes file, so that the order of the categories survives the way there and back."""
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in names))


def write_text(file: Path, text: str) -> None:
    """Write a text file; folders above it are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Pass items on, with a progress bar in a terminal and silently elsewhere."""
    console = Console(stderr=True)
    yield from track(items, title, console=console, transient=True, disable=not console.is_terminal)
