"""A data set in one format → the same in another, in a folder of its own."""

import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from data.convert.coco import read_coco, write_coco
from data.convert.dataset import DataSet
from data.convert.findings import Findings
from data.convert.folder import Link, new_folder, require_free
from data.convert.splits import deal
from data.convert.voc import read_voc, write_voc
from data.convert.yolo import read_yolo, write_yolo
from ssd.errors import UserError

NAMED_CATEGORIES = 10
"""Categories that the report lists."""


class Format(Enum):
    """What can be read and written."""

    coco = "coco"
    voc = "voc"
    yolo = "yolo"


@dataclass(frozen=True)
class Options:
    """How to convert, where the source leaves it open.

    val_fraction, seed: how a set without a validation split is dealt (data.convert.splits).
    classes_file: category names, one a line; None takes what the source has.
    link: how pictures get into the new folder.
    """

    val_fraction: float = 0.2
    seed: int = 0
    classes_file: Path | None = None
    link: Link = Link.hard

    def __post_init__(self) -> None:
        """Raise UserError for a fraction that leaves a split empty."""
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction:g}: give a number between 0 and 1")


def convert(
    source: Path, source_format: Format, out: Path, out_format: Format, options: Options
) -> list[str]:
    """Convert a folder; `out` appears when all of it is there. Return lines that say what was done.

    Everything is read before anything is written. Raises UserError for a source with problems, which are
    all listed, and for a folder that cannot be written or is not empty.
    """
    source = Path(os.path.abspath(source))
    if source_format is out_format:
        raise UserError(f"{source} is {source_format.value} already; give another format with --to")
    if not source.is_dir():
        raise UserError(f"{source} is no folder; give the one that holds the data set")
    require_free(out)
    findings = Findings()
    data = _with_two_splits(_read(source, source_format, options, findings), options, findings)
    with new_folder(out) as unfinished:
        _write(data, unfinished, out_format, options.link, findings)
    return [
        f"{source} ({source_format.value}) → {out} ({out_format.value})",
        *_summary(data),
        *findings.lines(),
    ]


def _read(source: Path, source_format: Format, options: Options, findings: Findings) -> DataSet:
    match source_format:
        case Format.voc:
            return read_voc(source, options.classes_file, findings)
        case Format.yolo:
            return read_yolo(source, options.classes_file, findings)
        case Format.coco:
            if options.classes_file is not None:
                raise UserError(
                    f"--classes {options.classes_file}: COCO annotations name their categories; leave it out"
                )
            return read_coco(source, findings)


def _write(data: DataSet, folder: Path, out_format: Format, link: Link, findings: Findings) -> None:
    match out_format:
        case Format.voc:
            write_voc(data, folder, link, findings)
        case Format.yolo:
            write_yolo(data, folder, link, findings)
        case Format.coco:
            write_coco(data, folder, link)


def _with_two_splits(data: DataSet, options: Options, findings: Findings) -> DataSet:
    if "val" in data.splits:
        files = {picture.file for picture in data.splits["train"]}
        for picture in data.splits["val"]:
            if picture.file in files:
                findings.count("pictures are in both splits: AP will not tell what was learned", picture.file)
        return data
    splits = deal(data.splits["train"], options.val_fraction, options.seed)
    findings.remark(
        f"no validation split in the source: dealt by file name with --val-fraction {options.val_fraction:g} "
        f"--seed {options.seed}"
    )
    return replace(data, splits=splits)


def _summary(data: DataSet) -> list[str]:
    lines = []
    for split, pictures in data.splits.items():
        boxes = sum(len(picture.boxes) for picture in pictures)
        empty = sum(not picture.boxes for picture in pictures)
        lines.append(f"{split}: {len(pictures)} pictures ({empty} without boxes), {boxes} boxes")
    named = [f"{place} {name}" for place, name in enumerate(data.categories[:NAMED_CATEGORIES], start=1)]
    more = len(data.categories) - len(named)
    lines.append(f"categories: {', '.join(named)}" + (f" and {more} more" if more else ""))
    return lines
