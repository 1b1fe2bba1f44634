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

No library does this (releases of 2026): globox and labelformat take VOC's corners for 0-based and know
neither splits nor `difficult`; supervision decodes every picture and forgets `difficult`.
"""

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from data.convert.coco import read_coco, write_coco
from data.convert.dataset import SPLIT_NAMES, DataSet, Finding, Picture, Split
from data.convert.voc import read_voc, write_voc
from data.convert.yolo import read_yolo, write_yolo
from ssd.config import formats_in
from ssd.errors import UserError

FORMATS = {"coco": (read_coco, write_coco), "voc": (read_voc, write_voc), "yolo": (read_yolo, write_yolo)}
LISTED_CATEGORIES = 10


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
    if not 0 < options.val_fraction < 1:
        raise UserError(f"--val-fraction {options.val_fraction:g}: give a number between 0 and 1")
    _check_formats(source, source_format, out, out_format)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there and is no empty folder; delete it, or give another one")
    read, write = FORMATS[source_format][0], FORMATS[out_format][1]
    data, findings = read(source, options.classes_file)
    train = {picture.file for picture in data.splits["train"]}
    others = [picture for split, pictures in data.splits.items() if split != "train" for picture in pictures]
    what = "pictures are in train and in another split: AP will not tell what was learned"
    findings += [Finding(what, picture.file) for picture in others if picture.file in train]
    if "val" not in data.splits:
        splits = data.splits | _split(data.splits["train"], options.val_fraction, options.seed)
        splits = {split: splits[split] for split in SPLIT_NAMES if split in splits}
        data = DataSet(data.categories, splits)
        how = f"--val-fraction {options.val_fraction:g} --seed {options.seed}"
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
    done = f"{source} ({source_format}) → {out} ({out_format})"
    return [done, *_contents(data), *_counted(findings)]


def _check_formats(source: Path, source_format: str, out: Path, out_format: str) -> None:
    """Raise UserError, with the command to give, for a source that is not what it is said to be."""
    found = formats_in(source)
    if found and source_format not in found:
        name, sign = next(iter(found.items()))
        to = "" if out_format in ("coco", name) else f" --to {out_format}"
        command = shlex.join(["python", "scripts/convert_dataset.py", name, str(source), str(out)]) + to
        fix = f"data.path={source} takes it" if name == out_format == "coco" else f"give `{command}`"
        what = f"a {name.upper()} data set, as {sign.name} shows, not {source_format.upper()}"
        raise UserError(f"{source} is {what}; {fix}")
    if source_format == out_format:
        raise UserError(f"{source} is {source_format} already; give another format with --to")
    if not source.is_dir() and not found:
        raise UserError(f"{source} is no folder; give the one that holds the data set")


def _split(pictures: Sequence[Picture], val_fraction: float, seed: int) -> dict[Split, list[Picture]]:
    """Put round(val_fraction · N) of N pictures, at least one and not all, into `val`, the rest into `train`.

    Each name is hashed with the seed and the lowest hashes are `val`: neither the order of the files nor the
    machine matters, and a picture that is added later moves hardly any other one.
    """
    if len(pictures) < 2:
        raise UserError(f"{pictures[0].file} is the only picture, one split stays empty; add more")

    def rank(picture: Picture) -> bytes:
        return hashlib.sha256(f"{seed}/{picture.name}".encode()).digest()

    count = min(max(round(val_fraction * len(pictures)), 1), len(pictures) - 1)
    val = {picture.name for picture in sorted(pictures, key=rank)[:count]}
    return {
        "train": [picture for picture in pictures if picture.name not in val],
        "val": [picture for picture in pictures if picture.name in val],
    }


def _contents(data: DataSet) -> list[str]:
    lines = []
    for split, pictures in data.splits.items():
        boxes = sum(len(picture.boxes) for picture in pictures)
        empty = sum(not picture.boxes for picture in pictures)
        lines.append(f"{split}: {len(pictures)} pictures ({empty} without boxes), {boxes} boxes")
    named = [f"{place} {name}" for place, name in enumerate(data.categories[:LISTED_CATEGORIES], start=1)]
    more = len(data.categories) - len(named)
    lines.append(f"categories: {', '.join(named)}" + (f" and {more} more" if more else ""))
    return lines


def _counted(findings: Iterable[Finding]) -> list[str]:
    """Return a line for each kind of finding: how often, by how many pixels at most, where first."""
    by_kind: dict[str, list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault(finding.what, []).append(finding)
    lines = []
    for what, found in by_kind.items():
        most_px = max(finding.px for finding in found)
        by = f", by {most_px:.3g} px at most" if most_px else ""
        lines.append(f"{len(found)} {what}{by} (first: {found[0].where})" if found[0].where else what)
    return lines
