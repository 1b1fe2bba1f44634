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
- No library does this (releases of 2026): globox and labelformat take VOC's corners for 0-based and know
  neither splits nor `difficult`; supervision decodes every picture and forgets `difficult`.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from data.convert.dataset import SPLIT_NAMES, DataSet, Finding, Picture, Split, read_coco, write_coco
from data.convert.voc import read_voc, write_voc
from data.convert.yolo import read_yolo, write_yolo
from ssd.errors import UserError, require

FORMATS = {"coco": (read_coco, write_coco), "voc": (read_voc, write_voc), "yolo": (read_yolo, write_yolo)}
LISTED_DEFECTS = 20

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
    line; None takes what the source has. link: a key of data.convert.dataset.LINKS.
    """

    val_fraction: float = 0.2
    seed: int = 0
    classes_file: Path | None = None
    link: str = "hard"


def convert(source: Path, source_format: str, out: Path, out_format: str, options: Options) -> list[str]:
    """Convert a folder; `out` appears when all of it is there. Return lines that say what was done.

    Everything is read before anything is written. Raises UserError for a source with defects, which are all
    listed, and for a folder that cannot be written or is not empty.
    """
    source = Path(os.path.abspath(source))
    fraction = options.val_fraction
    require(0 < fraction < 1, "--val-fraction", fraction, "give a number between 0 and 1")
    found = formats_in(source)
    if found and source_format not in found:
        name, sign = next(iter(found.items()))
        what = f"a {name} data set, as {sign.name} shows"
        raise UserError(f"{source} is {what}, not {source_format}; give `{name} {source}`")
    if source_format == out_format:
        raise UserError(f"{source} is {source_format} already; give another format with --to")
    if not source.is_dir() and not found:
        raise UserError(f"{source} is no folder; give the one that holds the data set")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there and is no empty folder; delete it, or give another one")
    read, write = FORMATS[source_format][0], FORMATS[out_format][1]
    data = read(source, options.classes_file)
    findings = _check(data, source, options.classes_file or source)
    if "val" not in data.splits:
        splits = data.splits | _split(data.splits["train"], fraction, options.seed)
        data = replace(data, splits={split: splits[split] for split in SPLIT_NAMES if split in splits})
        how = f"--val-fraction {fraction:g} --seed {options.seed}"
        findings.append(Finding(f"no validation split in the source: dealt by file name with {how}"))
    target = out.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            unfinished = Path(temporary, target.name)
            unfinished.mkdir()
            findings += write(data, unfinished, options.link)
            unfinished.rename(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); give another folder") from error
    return [f"{source} ({source_format}) → {out} ({out_format})", *_summary(data, findings)]


def formats_in(source: Path) -> dict[str, Path]:
    """Return the formats that a folder looks like, each with the file that tells; a yaml file is YOLO's."""
    if source.suffix in (".yaml", ".yml") and source.is_file():
        return {"yolo": source}
    found = {name: next(chain(*map(source.glob, signs)), None) for name, signs in _SIGNS.items()}
    return {name: file for name, file in found.items() if file}


def _check(data: DataSet, source: Path, named_in: Path) -> list[Finding]:
    """Return all findings. Raises UserError with the defects, or the category name that can't be used."""
    pictures = [(split, picture) for split, members in data.splits.items() for picture in members]
    findings = [*data.findings, *(finding for _, picture in pictures for finding in picture.findings)]
    defects = [f"{finding.where}: {finding.what}" for finding in findings if finding.defect]
    if len(defects) == 1:
        raise UserError(defects[0])
    if defects:
        what = f"{source}: {len(defects)} problems, nothing was written; the first:"
        raise UserError("\n  ".join([what, *defects[:LISTED_DEFECTS]]))
    names = data.categories
    if not names:
        raise UserError(f"{named_in}: no category name; write one a line into a file and give --classes FILE")
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable() or names.index(name) < index:
            raise UserError(
                f"{named_in}: category name {index}, {name!r}, stands there twice, is blank, or has a space "
                "at an end or a character that cannot be printed; rename it"
            )
    train = {picture.file for picture in data.splits["train"]}
    what = "pictures are in train and in another split: AP will not tell what was learned"
    leaks = [picture.file for split, picture in pictures if split != "train" and picture.file in train]
    return [*findings, *(Finding(what, file) for file in leaks)]


def _split(pictures: Sequence[Picture], val_fraction: float, seed: int) -> dict[Split, list[Picture]]:
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


def _summary(data: DataSet, findings: list[Finding]) -> list[str]:
    """Return a line for each split, and for each kind of finding how often, by how many px, where first."""
    lines = []
    for split, pictures in data.splits.items():
        boxes = sum(len(picture.boxes) for picture in pictures)
        empty = sum(not picture.boxes for picture in pictures)
        lines.append(f"{split}: {len(pictures)} pictures ({empty} without boxes), {boxes} boxes")
    names = (f"{place} {name}" for place, name in enumerate(data.categories, start=1))
    lines.append(f"categories: {', '.join(names)}")
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.what, []).append(finding)
    for what, found in by_kind.items():
        most_px = max(finding.px for finding in found)
        by = f", by {most_px:.3g} px at most" if most_px else ""
        lines.append(f"{len(found)} {what}{by} (first: {found[0].where})" if found[0].where else what)
    return lines
