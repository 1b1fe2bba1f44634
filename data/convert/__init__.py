"""Pascal VOC xml, YOLO txt and the COCO layout that `data.path=` reads, each into each other.

Conventions, the same in both directions:

- Inside, a box is COCO's: ltwh in pixels of a picture that reaches from 0 to its width and height.
- VOC counts pixels from 1 and its corners are part of the box: left = xmin − 1, right = xmax (the devkit's
  rule). Written are whole pixels: a side moves by half a pixel at most; a box thinner than a pixel becomes a
  pixel wide.
- YOLO's class cx cy w h are relative to the picture and written with all digits of a float64. COCO boxes are
  written to a millionth of a pixel, which takes off the noise of the division: COCO → YOLO → COCO returns the
  very numbers where they had no more than six decimals.
- VOC's `difficult` is COCO's `iscrowd`: to evaluation neither is a hit or a miss. YOLO has no such mark:
  crowd boxes are left out, and counted.
- Categories have the ids 1 … K in the order of the classes file (data.yaml, classes.txt, obj.names); without
  one, VOC's are sorted by name. All splits have all of them. Writers of VOC and YOLO add the file: the order
  survives the way there and back.
- Boxes that hang over an edge are cut there and counted, as training cuts them.
- Pictures are linked or copied, never encoded again; their headers say what size they have.
- A test split comes along where the source has annotations of it.
- Ids of images and categories do not survive, nor do polygons: `area` is the box's.
- No library does this (2026): globox and labelformat take VOC's corners for 0-based and know no splits,
  supervision forgets `difficult`.
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
"""What finds the pictures, what writes the annotations, and the folder of a split's pictures."""
LINKS: dict[str, Callable[[Path, Path], object]]
LINKS = {"hard": os.link, "symlink": os.symlink, "copy": shutil.copy2}
"""How a picture gets into the new folder, by the value of --link."""
LISTED_PROBLEMS = 20

_SIGNS = {
    "coco": ["annotations/instances_train2017.json"],
    "voc": ["*.xml", "[!.]*/*.xml", "[!.]*/[!.]*/*.xml"],
    "yolo": [
        *("data.y*ml", "dataset.y*ml", "obj.names", "classes.txt"),
        *("labels/*.txt", "labels/*/*.txt", "*/labels/*.txt"),
    ],
}
"""Files that a data set of a format has, wherever its pictures are."""


@dataclass(frozen=True)
class Options:
    """How to convert, where the source leaves it open.

    val_fraction, seed: how a set without a validation split is split. classes_file: category names, one a
    line; None takes what the source has. link: a key of LINKS.
    """

    val_fraction: float = 0.2
    seed: int = 0
    classes_file: Path | None = None
    link: str = "hard"


def convert(source: Path, source_format: str, out: Path, out_format: str, options: Options) -> list[str]:
    """Convert a folder; `out` appears when all of it is there. Return lines that say what was done.

    Everything is read before anything is written. Raises UserError for what is wrong with the source, at
    most one problem of each picture, and for a folder that cannot be written or is not empty.
    """
    source = Path(os.path.abspath(source))
    fraction = options.val_fraction
    require(0 < fraction < 1, "--val-fraction", fraction, "give a number between 0 and 1")
    formats = formats_in(source)
    if not source.exists():
        raise UserError(f"{source} is not there; give the folder that holds the data set")
    if formats and source_format not in formats:
        raise UserError(f"{source} looks like {' and '.join(formats)}; give that instead of {source_format}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there and is no empty folder; delete it, or give another one")
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
        found.notes.append((f"no validation split in the source: dealt by file name with {how}", None))
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
        raise UserError(f"{target}: cannot be written ({error.strerror}); give another folder") from error
    return [f"{source} ({source_format}) → {out} ({out_format})", *_summary(names, splits, found.notes)]


def formats_in(source: Path) -> dict[str, Path]:
    """Return the formats that a folder looks like, each with the file that tells; a yaml file is YOLO's."""
    if source.suffix in (".yaml", ".yml") and source.is_file():
        return {"yolo": source}
    found = {name: next(chain(*map(source.glob, signs)), None) for name, signs in _SIGNS.items()}
    return {name: file for name, file in found.items() if file}


def _read(found: Found, source: Path) -> Splits:
    """Read all pictures. A test split without annotations, as many sets have one, is left out."""
    splits: Splits = {}
    problems = []
    for split, readers in found.readers.items():
        if not readers and split == "test":
            found.notes.append(("test split left out: none of its pictures has annotations", None))
            continue
        if not readers:
            raise UserError(f"{source}: no picture of {split} has annotations; put them as docs/DATA.md says")
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
        raise UserError(f"{named_in}: no category name; write one a line into a file and give --classes FILE")
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable() or names.index(name) < index:
            raise UserError(
                f"{named_in}: category name {index}, {name!r}, stands there twice, is blank, or has a space "
                "at an end or a character that cannot be printed; rename it"
            )


def _split(pictures: Sequence[Picture], val_fraction: float, seed: int) -> Splits:
    """Put round(val_fraction · N) of N pictures, at least one and not all, into `val`, the rest into `train`.

    Each name is hashed with the seed and the lowest hashes are `val`: neither the order of the files nor the
    machine matters, and a picture that is added later moves hardly any other one.
    """
    if len(pictures) < 2:
        raise UserError(f"{pictures[0].file} is the only picture, one split stays empty; add more")
    ranked = sorted(pictures, key=lambda each: hashlib.sha256(f"{seed}/{each.name}".encode()).digest())
    count = min(max(round(val_fraction * len(pictures)), 1), len(pictures) - 1)
    val = {each.name for each in ranked[:count]}
    return {
        "train": [each for each in pictures if each.name not in val],
        "val": [each for each in pictures if each.name in val],
    }


def _place_pictures(splits: Splits, folder: Path, pattern: str, link: str) -> None:
    """Put pictures into the folders of their splits under their names, unchanged.

    Raises UserError where that cannot be, and for two that would have one annotation file.
    """
    taken: set[str] = set()
    for split, pictures in splits.items():
        for picture in _shown(pictures, f"pictures of {split}"):
            target = folder / pattern.format(split) / picture.name
            stem = os.path.splitext(target)[0]
            if stem in taken:
                raise UserError(f"{picture.file}: another picture is called {picture.stem} too; rename one")
            taken.add(stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                LINKS[link](
                    picture.file.resolve(), target
                )  # a hard link to a relative symlink points nowhere
            except OSError as error:
                raise UserError(
                    f"{picture.file}: --link {link} to {picture.name} failed ({error.strerror}); "
                    "give --link symlink or copy, or make room"
                ) from error


def _shown(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Pass items on, with a progress bar in a terminal and silently elsewhere."""
    console = Console(stderr=True)
    yield from track(items, title, console=console, transient=True, disable=not console.is_terminal)


def _summary(names: Sequence[str], splits: Splits, notes: list[Note]) -> list[str]:
    """Return a line for each split, and for each kind of note how often and where first."""
    lines = []
    for split, pictures in splits.items():
        boxes, empty = sum(len(each.boxes) for each in pictures), sum(not each.boxes for each in pictures)
        lines.append(f"{split}: {len(pictures)} pictures ({empty} without boxes), {boxes} boxes")
    lines.append(f"categories: {', '.join(f'{place} {name}' for place, name in enumerate(names, start=1))}")
    places: dict[str, list[object]] = {}
    for what, where in chain(notes, *(picture.notes for pictures in splits.values() for picture in pictures)):
        places.setdefault(what, []).append(where)
    for what, found in places.items():
        lines.append(f"{len(found)} {what} (first: {found[0]})" if found[0] else what)
    return lines
