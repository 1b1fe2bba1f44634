"""The data set between reading and writing, with its COCO layout, and what VOC and YOLO share."""

import itertools
import math
import os
import posixpath
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from PIL import Image
from rich.console import Console
from rich.progress import track

from data.pictures import UPRIGHT, orientation
from ssd.annotations import Annotations, read_annotations
from ssd.config import coco_place
from ssd.errors import UserError

Item = TypeVar("Item")
Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
"""What files and folders of a split are called."""

EXACT_DECIMALS = 6
"""Decimals of a pixel that are written to COCO; a smaller difference is float noise."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CLASSES_FILE = "classes.txt"
"""Category names, one a line, in the order of their ids: written, and read where the source has one."""
LINKS: dict[str, Callable[[Path, Path], object]]
LINKS = {"hard": os.link, "symlink": os.symlink, "copy": shutil.copy2}
"""How a picture gets into the new folder, by the value of --link."""


@dataclass(frozen=True)
class Box:
    """An object; crowd: evaluation counts it neither as a hit nor as a miss."""

    category: str
    ltwh_px: tuple[float, float, float, float]
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
    """Category names in the order of their ids; pictures by split. A source may lack `val` and `test`.

    findings: besides those of the pictures.
    """

    categories: Sequence[str]
    splits: dict[Split, list[Picture]]
    findings: list[Finding]


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


def open_picture(file: Path, name: str, size_px: tuple[float, float] | None = None) -> Picture:
    """Return a picture without boxes; raise UserError where it cannot be read or has another size.

    size_px: width and height as the annotations say, None if they don't.
    """
    try:
        # Pillow warns of large pictures; an absurd size it refuses.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            turned = orientation(image) != UPRIGHT
            picture = Picture(file, name, image.width, image.height, len(image.getbands()))
    except Exception as error:  # Pillow's readers raise almost anything on a broken header
        raise UserError(f"{file} is no picture that can be read ({error}); replace or remove it") from error
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


def read_lines(file: Path) -> list[str]:
    """Return a text file's lines up to the last that is not blank, without white space at their ends.

    Raises UserError.
    """
    try:
        return [line.strip() for line in read_bytes(file).decode("utf-8-sig").rstrip().splitlines()]
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


def write_text(file: Path, text: str, picture: Picture | None = None) -> None:
    """Write a text file; raise UserError where another picture than this one has it."""
    if file.exists() and picture is not None:
        raise UserError(
            f"{picture.file}: another picture has the annotation file {file.name} too; rename one"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Pass items on, with a progress bar in a terminal and silently elsewhere."""
    console = Console(stderr=True)
    yield from track(items, title, console=console, transient=True, disable=not console.is_terminal)


def read_coco(source: Path, classes_file: Path | None) -> DataSet:
    """Read the folder that `data.path=` names, with the splits it has annotations of.

    Boxes without area inside their picture have no counterpart elsewhere: left out, and counted.
    Raises UserError: at the first bad entry of an annotation file, with every bad picture.
    """
    if classes_file is not None:
        raise UserError(f"--classes {classes_file}: COCO annotations name their categories; leave it out")
    splits: dict[Split, list[Picture]] = {}
    findings: list[Finding] = []
    for split in SPLIT_NAMES:
        file, folder = coco_place(source, f"{split}_annotations"), coco_place(source, f"{split}_images")
        if not file.exists():
            if split == "train":
                raise UserError(f"{file} is missing; give a folder in COCO layout")
            continue
        content = read_annotations(file, f"data.{split}_annotations")
        if split == "train":
            categories = content.categories
        categories.check_scored_by(content.categories, file)
        splits[split] = []
        for image in shown(range(len(content)), f"reading {split}"):
            with defects_into(findings, f"{file}: images[{image}] (id {content.image_ids[image]})"):
                splits[split].append(_read_picture(content, image, folder))
    return DataSet(categories.names, splits, findings)


def _read_picture(annotations: Annotations, image: int, folder: Path) -> Picture:
    name = posixpath.normpath(annotations.file_names[image].decode())
    width, height = annotations.sizes_px[image].tolist()
    picture = open_picture(folder / name, name, (width, height))
    rows = slice(*annotations.box_starts[image : image + 2])
    columns = (annotations.boxes_ltwh_px[rows], annotations.labels[rows], annotations.crowd[rows])
    for ltwh_px, label, crowd in zip(*(column.tolist() for column in columns), strict=True):
        try:
            picture.add(Box(annotations.categories.name_of(label), tuple(ltwh_px), crowd), name)
        except UserError:
            what = "boxes without area inside their picture are left out"
            picture.findings.append(Finding(what, name))
    return picture


def write_coco(data: DataSet, folder: Path, link: str) -> list[Finding]:
    """Write all splits, ids counted from 1 through both, in the order given; `area` is the box's."""
    category_ids = {name: place for place, name in enumerate(data.categories, start=1)}
    categories = [{"id": place, "name": name} for name, place in category_ids.items()]
    image_ids, annotation_ids = itertools.count(1), itertools.count(1)
    for split, pictures in data.splits.items():
        place_pictures(pictures, coco_place(folder, f"{split}_images"), link)
        images, annotations = [], []
        for picture in pictures:
            image_id = next(image_ids)
            size = {"width": picture.width, "height": picture.height}
            images.append({"id": image_id, "file_name": picture.name, **size})
            for box in picture.boxes:
                _, _, width, height = ltwh_px = [round(value, EXACT_DECIMALS) for value in box.ltwh_px]
                annotations.append(
                    {
                        "id": next(annotation_ids),
                        "image_id": image_id,
                        "category_id": category_ids[box.category],
                        "bbox": ltwh_px,
                        "area": round(width * height, EXACT_DECIMALS),
                        "iscrowd": int(box.crowd),
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        write_text(coco_place(folder, f"{split}_annotations"), msgspec.json.encode(document).decode())
    return []
