"""Convert data sets between Pascal VOC xml, YOLO txt and the COCO layout that `data.path=` reads.

Conventions, the same in both directions:

- Internally, boxes are COCO's: ltwh in pixels of a picture that spans 0 to its width and height.
- VOC counts pixels from 1, and its corners are part of the box: left = xmin − 1, right = xmax (the devkit's
  rule). Corners are written as whole pixels: a side moves by at most half a pixel, and a box thinner than a
  pixel becomes one pixel wide.
- YOLO's class cx cy w h are relative to the picture and written with full float64 precision. COCO boxes are
  rounded to a millionth of a pixel, which removes float noise: COCO → YOLO → COCO returns exactly the same
  numbers if they have at most six decimals.
- VOC's `difficult` is COCO's `iscrowd`: evaluation counts neither as a hit or a miss. YOLO has no such flag:
  crowd boxes are left out and counted.
- Category ids are 1 … K in the order of the classes file (data.yaml, classes.txt, obj.names); without one,
  VOC's names are sorted. Every split lists all categories. VOC and YOLO output includes the classes file, so
  the order survives a round trip.
- Boxes that extend past an edge are clipped there, as in training, and counted.
- Pictures are linked or copied, never re-encoded; their sizes come from their headers.
- A test split is converted if the source has annotations for it.
- Image ids, category ids and polygons are not preserved: `area` is the box's.
- No library does this (2026): globox and labelformat treat VOC's corners as 0-based and ignore splits;
  supervision drops `difficult`.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from data.convert.dataset import SPLIT_NAMES, Found, Note, Picture, Splits, find_coco, write_coco
from data.convert.voc import find_voc, write_voc
from data.convert.yolo import find_yolo, write_yolo
from ssd.errors import UserError, require

Item = TypeVar("Item")
FORMATS = {
    "coco": (find_coco, write_coco, "{}2017"),
    "voc": (find_voc, write_voc, "JPEGImages"),
    "yolo": (find_yolo, write_yolo, "images/{}"),
}
"""By format: the function that finds pictures, the one that writes annotations, a split's picture folder."""
LINKS: dict[str, Callable[[Path, Path], object]]
LINKS = {"hard": os.link, "symlink": os.symlink, "copy": shutil.copy2}
"""How a picture gets into the new folder, by --link value."""
LISTED_PROBLEMS = 20

_SIGNS = {
    "coco": ["annotations/instances_train2017.json"],
    "voc": ["*.xml", "[!.]*/*.xml", "[!.]*/[!.]*/*.xml"],
    "yolo": [
        *("data.y*ml", "dataset.y*ml", "obj.names", "classes.txt"),
        *("labels/*.txt", "labels/*/*.txt", "*/labels/*.txt"),
    ],
}
"""Files that identify a format, wherever its pictures are."""


@dataclass(frozen=True)
class Options:
    """Settings that the source doesn't determine.

    val_fraction, seed: how to split a set that has no validation split. classes_file: category names, one
    per line; None uses the source's. link: a key of LINKS.
    """

    val_fraction: float = 0.2
    seed: int = 0
    classes_file: Path | None = None
    link: str = "hard"


def convert(source: Path, source_format: str, out: Path, out_format: str, options: Options) -> list[str]:
    """Convert a folder; `out` appears only once it is complete. Return lines that say what was done.

    Everything is read before anything is written. Raises UserError for problems of the source, at most one
    per picture, and if `out` can't be written or is not empty.
    """
    source = Path(os.path.abspath(source))
    fraction = options.val_fraction
    require(0 < fraction < 1, "--val-fraction", fraction, "give a number between 0 and 1")
    formats = formats_in(source)
    if not source.exists():
        raise UserError(f"{source} does not exist; give the folder that holds the data set")
    if formats and source_format not in formats:
        raise UserError(f"{source} looks like {' and '.join(formats)}; give that instead of {source_format}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists and is not an empty folder; delete it or give another")
    find, (_, write, pattern) = FORMATS[source_format][0], FORMATS[out_format]
    found = find(source, options.classes_file)
    splits = _read(found, source)
    names = found.categories
    if names is None:
        names = sorted({box.category for picture in chain(*splits.values()) for box in picture.boxes})
    _check_names(names, options.classes_file or source)
    if "val" not in splits:
        splits |= _split(splits["train"], fraction, options.seed)
        how = f"--val-fraction {fraction:g} --seed {options.seed}"
        found.notes.append((f"no validation split in the source: split by file name with {how}", None))
    splits = {split: splits[split] for split in SPLIT_NAMES if split in splits}
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            unfinished = Path(temporary, target.name)
            unfinished.mkdir()
            _place_pictures(splits, unfinished, pattern, options.link)
            write(names, splits, unfinished)
            unfinished.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); give another folder") from error
    return [f"{source} ({source_format}) → {out} ({out_format})", *_summary(names, splits, found.notes)]


def formats_in(source: Path) -> dict[str, Path]:
    """Return the formats that a folder looks like, each with a file that shows it; a yaml file is YOLO's."""
    if source.suffix in (".yaml", ".yml") and source.is_file():
        return {"yolo": source}
    found = {name: next(chain(*map(source.glob, signs)), None) for name, signs in _SIGNS.items()}
    return {name: file for name, file in found.items() if file}


def _read(found: Found, source: Path) -> Splits:
    """Read all pictures. A test split without annotations is left out: many sets have one."""
    splits: Splits = {}
    problems = []
    for split, readers in found.readers.items():
        if not readers and split == "test":
            found.notes.append(("test split left out: none of its pictures has annotations", None))
            continue
        if not readers:
            raise UserError(f"{source}: no picture in {split} has annotations; see docs/DATA.md for layouts")
        splits[split] = []
        for read in _shown(readers, f"reading {split}"):
            try:
                splits[split].append(read())
            except (UserError, OSError) as error:
                problems.append(str(error))
    if len(problems) > 1:
        problems[LISTED_PROBLEMS:] = [f"nothing was written: {len(problems)} pictures have problems"]
    if problems:
        raise UserError("\n".join(problems))
    return splits


def _check_names(names: Sequence[str], named_in: Path) -> None:
    if not names:
        raise UserError(f"{named_in}: no category names; write a file with one per line, give --classes FILE")
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable() or names.index(name) < index:
            raise UserError(
                f"{named_in}: category name {index}, {name!r}, is a duplicate, is blank, has a space at an "
                "end, or has a character that cannot be printed; rename it"
            )


def _split(pictures: Sequence[Picture], val_fraction: float, seed: int) -> Splits:
    """Put round(val_fraction · N) of N pictures, at least one and not all, into `val`, the rest into `train`.

    Each name is hashed with the seed, and the lowest hashes become `val`: neither file order nor the machine
    matters, and a picture added later moves hardly any others.
    """
    if len(pictures) < 2:
        raise UserError(f"{pictures[0].file} is the only picture, so one split would be empty; add more")
    ranked = sorted(pictures, key=lambda each: hashlib.sha256(f"{seed}/{each.name}".encode()).digest())
    count = min(max(round(val_fraction * len(pictures)), 1), len(pictures) - 1)
    val = {each.name for each in ranked[:count]}
    return {
        "train": [each for each in pictures if each.name not in val],
        "val": [each for each in pictures if each.name in val],
    }


def _place_pictures(splits: Splits, folder: Path, pattern: str, link: str) -> None:
    """Put unchanged pictures into their splits' folders under their names.

    Raises UserError if that fails, or if two pictures would share an annotation file.
    """
    taken: set[str] = set()
    for split, pictures in splits.items():
        for picture in _shown(pictures, f"pictures of {split}"):
            target = folder / pattern.format(split) / picture.name
            stem = os.path.splitext(target)[0]
            if stem in taken:
                raise UserError(f"{picture.file}: another picture is also called {picture.stem}; rename one")
            taken.add(stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Resolved: a hard link to a relative symlink would point nowhere.
                LINKS[link](picture.file.resolve(), target)
            except OSError as error:
                raise UserError(
                    f"{picture.file}: --link {link} to {picture.name} failed ({error.strerror}); "
                    "give --link symlink or copy, or free some space"
                ) from error


def _shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Yield the items, with a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    yield from track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _summary(names: Sequence[str], splits: Splits, notes: list[Note]) -> list[str]:
    """Return a line for each split, and one for each kind of note with its count and first place."""
    lines = []
    for split, pictures in splits.items():
        boxes, empty = sum(len(each.boxes) for each in pictures), sum(not each.boxes for each in pictures)
        lines.append(f"{split}: {len(pictures)} pictures ({empty} without boxes), {boxes} boxes")
    lines.append(f"categories: {', '.join(f'{place} {name}' for place, name in enumerate(names, start=1))}")
    places: dict[str, list[object]] = {}
    for what, where in chain(notes, *(picture.notes for pictures in splits.values() for picture in pictures)):
        places.setdefault(what, []).append(where)
    for what, found in places.items():
        lines.append(f"{what}: {len(found)} (first: {found[0]})" if found[0] else what)
    return lines
