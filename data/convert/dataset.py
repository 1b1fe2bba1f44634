"""The data set between reading and writing, the COCO layout, and the code that VOC and YOLO share."""

import itertools
import math
import os
import posixpath
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from PIL import Image

from data.pictures import UPRIGHT, orientation
from ssd.annotations import Annotations, read_annotations
from ssd.config import coco_place
from ssd.errors import UserError

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
"""Names of a split's files and folders."""
_SPLITS: dict[str, Split] = {
    f"{name}{year}": split for split, names in SPLIT_NAMES.items() for name in names for year in ("", "2017")
}

EXACT_DECIMALS = 6
"""Decimals of a pixel in written COCO boxes; smaller differences are float noise."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
CLASSES_FILE = "classes.txt"
"""Category names, one per line, in id order: always written with VOC and YOLO, read if the source has it."""
Splits = dict[Split, list["Picture"]]
Note = tuple[str, object]
"""What a conversion found or did, and the place; None if it concerns no single place."""


@dataclass(frozen=True)
class Box:
    """An object. crowd: evaluation counts it neither as a hit nor as a miss."""

    category: str
    ltwh_px: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture and its boxes. name: its posix path in the split's folder.

    Size and boxes refer to the pixels as stored, as in training. notes: from reading and writing it.
    """

    file: Path
    name: str
    width: int
    height: int
    channels: int
    boxes: list[Box] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """The name without its suffix but with its folders; annotation files are named after it."""
        return os.path.splitext(self.name)[0]

    def add(self, box: Box, where: str) -> None:
        """Add a box, clipped at the picture's edges; raise UserError if none of its area lies inside.

        The overhang is subtracted from the size, as in training: a box inside keeps its exact numbers.
        """
        left, top, width, height = box.ltwh_px
        over_left, over_right = max(-left, 0.0), max(left + width - self.width, 0.0)
        over_top, over_bottom = max(-top, 0.0), max(top + height - self.height, 0.0)
        if hangs_over := max(over_left, over_right, over_top, over_bottom) > 10**-EXACT_DECIMALS:
            left, top = max(left, 0.0), max(top, 0.0)
            width, height = width - over_left - over_right, height - over_top - over_bottom
        if not (width > 0 and height > 0 and all(map(math.isfinite, box.ltwh_px))):
            raise UserError(
                f"{where}: box (left, top, width, height) {box.ltwh_px} px has no area inside the "
                f"{self.width}×{self.height} picture; correct or remove it"
            )
        self.boxes.append(Box(box.category, (left, top, width, height), box.crowd))
        if hangs_over:
            self.notes.append(("boxes clipped to their picture", where))


@dataclass(frozen=True)
class Found:
    """The contents of a source, before its pictures are read.

    categories: names in id order; None: the boxes' category names, sorted.
    readers: by split, a function for each picture that reads it and raises UserError or OSError if anything
    is wrong; empty if nothing in the split is annotated. A source may lack `val` and `test`.
    """

    categories: Sequence[str] | None
    readers: dict[Split, list[Callable[[], Picture]]]
    notes: list[Note] = field(default_factory=list)


def open_picture(file: Path, name: str, size_px: tuple[float, float] | None = None) -> Picture:
    """Return a picture without boxes; raise UserError if it can't be read or has another size.

    size_px: width and height according to the annotations, None if they don't say.
    """
    try:
        # Pillow warns about large pictures and refuses absurd sizes.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            turned = orientation(image) != UPRIGHT
            picture = Picture(file, name, image.width, image.height, len(image.getbands()))
    except Exception as error:  # Pillow's readers raise almost anything on a broken header
        raise UserError(f"{file} cannot be read as a picture ({error}); replace or remove it") from error
    if size_px is not None and size_px != (picture.width, picture.height):
        raise UserError(
            f"{file} has {picture.width}×{picture.height} pixels but its annotations say "
            f"{size_px[0]:.10g}×{size_px[1]:.10g}; correct them, or restore the picture that was annotated"
        )
    if turned:
        picture.notes.append(("pictures with EXIF rotation, boxes taken as unrotated", file))
    return picture


def read_lines(file: Path) -> list[str]:
    """Return a text file's lines, stripped, to the last non-blank one. Raises UserError and OSError."""
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is not valid UTF-8; save the file as UTF-8") from error


def find_files(folder: Path, suffixes: tuple[str, ...] = PICTURE_SUFFIXES) -> list[str]:
    """Return the sorted posix paths of a folder's files, with subfolders and links but no hidden files.

    suffixes: in lower case, the pictures' by default; the files' own may be in any case.
    """
    found = []
    for above, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if name.lower().endswith(suffixes) and not name.startswith("."))
        found += [Path(above, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def split_by_folder(names: Iterable[str]) -> dict[Split, dict[str, str]]:
    """Return the paths whose first folder names a split, each with the rest of it; else all as `train`."""
    splits: dict[Split, dict[str, str]] = {}
    for name in names:
        folder, _, rest = name.partition("/")
        if rest and folder.lower() in _SPLITS:
            splits.setdefault(_SPLITS[folder.lower()], {})[name] = rest
    return splits if "train" in splits else {"train": {name: name for name in names}}


def write_text(file: Path, text: str) -> None:
    """Write a text file, creating its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def find_coco(source: Path, classes_file: Path | None) -> Found:
    """Find the pictures of a folder laid out for `data.path=`, in the splits that have annotations.

    Boxes with no area inside their picture have no equivalent in VOC and YOLO: they are left out and counted.
    Raises UserError for a missing training file and for the first bad entry of an annotation file.
    """
    if classes_file is not None:
        raise UserError(f"--classes {classes_file}: COCO annotations name their categories; leave it out")
    contents = {}
    for split in SPLIT_NAMES:
        file = coco_place(source, f"{split}_annotations")
        if split == "train" or file.exists():
            if not file.is_file():
                raise UserError(f"{file} is missing or not a file; see docs/DATA.md for COCO's layout")
            contents[split] = read_annotations(file, "file")
            contents["train"].categories.check_scored_by(contents[split].categories, file)
    readers: dict[Split, list[Callable[[], Picture]]] = {
        split: [
            partial(_read_picture, content, image, coco_place(source, f"{split}_images"))
            for image in range(len(content))
        ]
        for split, content in contents.items()
    }
    return Found(contents["train"].categories.names, readers)


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
            picture.notes.append(("boxes left out because no area lies inside their picture", name))
    return picture


def write_coco(names: Sequence[str], splits: Splits, folder: Path) -> None:
    """Write the annotation file of each split; ids count from 1 across splits, and `area` is the box's."""
    category_ids = {name: place for place, name in enumerate(names, start=1)}
    categories = [{"id": place, "name": name} for name, place in category_ids.items()]
    image_ids, annotation_ids = itertools.count(1), itertools.count(1)
    for split, pictures in splits.items():
        images, annotations = [], []
        for picture, image_id in zip(pictures, image_ids, strict=False):
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
