"""Which pictures of a YOLO folder make which split, and where the label file of each lies."""

import os
from dataclasses import dataclass
from pathlib import Path

from data.convert.dataset import SPLITS, Split
from data.convert.findings import Findings
from data.convert.pictures import SUFFIXES, find_files
from data.convert.text import read_lines
from data.convert.yolo.config import Config
from ssd.errors import UserError

# Of tools' exports; the first that is there is the split's.
_PLACES = {
    "train": ("train.txt", "images/train", "images/train2017", "train/images", "train"),
    "val": (
        *("val.txt", "valid.txt", "images/val", "images/valid", "images/val2017"),
        *("val/images", "valid/images", "val", "valid"),
    ),
    "test": ("test.txt", "images/test", "test/images", "test"),
}
_WITHOUT_SPLITS = ("images", "obj_train_data")


@dataclass(frozen=True)
class Entry:
    """A picture, what it is called in its split, and its label file, which may be missing."""

    picture: Path
    name: str
    labels: Path


def find_entries(source: Path, config: Config, findings: Findings) -> dict[Split, list[Entry]]:
    """Return the entries of each split, sorted; `train` alone where the source has no validation split.

    The splits are where data.yaml says, else in the folders or list files of the usual exports, else all
    pictures are one. Raises UserError where a place of data.yaml is missing or without pictures.
    """
    found = _of_config(source, config) if config.train is not None else _of_usual_places(source)
    if "test" in found:
        findings.remark(f"{found['test'][0]} is not used: the COCO layout has train and val")
    entries: dict[Split, list[Entry]] = {}
    for split in SPLITS:
        if split in found:
            entries[split] = [entry for place in found[split] for entry in _entries(source, place, findings)]
            findings.stop_at_problems(source)
            if not entries[split]:
                raise UserError(f"{found[split][0]} holds no picture ({' '.join(SUFFIXES)}); add some")
    return entries


def _of_config(source: Path, config: Config) -> dict[str, list[Path]]:
    places = {"train": config.train, "val": config.val, "test": config.test}
    found: dict[str, list[Path]] = {}
    for split, place in places.items():
        if place:
            listed = [place] if isinstance(place, str) else place
            found[split] = [_of_config_entry(source, config, split, one) for one in listed]
    return found


def _of_config_entry(source: Path, config: Config, split: str, place: str) -> Path:
    """Return the folder or list file that data.yaml names.

    Tools write `path` for the machine they ran on, and ../train/images for train/images: what lies in the
    source itself comes first.
    """
    inside = place if os.path.isabs(place) else place.lstrip("./")
    candidates = [os.path.normpath(source / path) for path in (inside, Path(config.path or ".", place))]
    for path in candidates:
        if os.path.exists(path):
            return Path(path)
    raise UserError(
        f"{source}: {split}: {place} of its yaml file is neither {' nor '.join(candidates)}; "
        "correct the entry"
    )


def _of_usual_places(source: Path) -> dict[str, list[Path]]:
    found = {
        split: [source / name]
        for split, names in _PLACES.items()
        if (name := _first(source, names)) is not None
    }
    if "train" in found:
        return found
    if "val" in found:
        raise UserError(
            f"{source} has {found['val'][0].name} and no train beside it; add train, or rename it"
        )
    return {"train": [source / (_first(source, _WITHOUT_SPLITS) or "")]}


def _first(source: Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (source / name).exists()), None)


def _entries(source: Path, place: Path, findings: Findings) -> list[Entry]:
    if place.is_dir():
        names = find_files(place, SUFFIXES)
        entries = [Entry(place / name, name, _label_file(source, place / name)) for name in names]
        _refuse_orphans(entries, findings)
        return entries
    pictures = []
    for number, line in enumerate(read_lines(place), start=1):
        with findings.collect(f"{place}: line {number}"):
            if line:
                pictures.append(_listed(source, line))
    if not pictures:
        return []
    folder = os.path.commonpath([picture.parent for picture in pictures])
    return [
        Entry(picture, picture.relative_to(folder).as_posix(), _label_file(source, picture))
        for picture in sorted(pictures)
    ]


def _refuse_orphans(entries: list[Entry], findings: Findings) -> None:
    """Tell of label files without a picture, in the folders that hold label files alone."""
    expected = {entry.labels for entry in entries}
    folders = {labels.parent for labels in expected} - {entry.picture.parent for entry in entries}
    for folder in sorted(folders):
        for labels in sorted(set(folder.glob("[!.]*.txt")) - expected):
            with findings.collect(labels):
                raise UserError("no picture belongs to it; add the picture, or remove the file")


def _listed(source: Path, line: str) -> Path:
    """Return the picture of a line of a list file; darknet's lists begin with data/, which is no folder."""
    for name in (line, line.removeprefix("data/")):
        path = Path(os.path.normpath(source / name))
        if path.is_file():
            return path
    raise UserError(f"there is no picture {line!r}; correct or remove the line")


def _label_file(source: Path, picture: Path) -> Path:
    """Return images/…/a.jpg → labels/…/a.txt for the last `images` of the path, else the txt beside."""
    base = source if picture.is_relative_to(source) else Path(picture.anchor)
    parts = list(picture.relative_to(base).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        parts[last] = "labels"
    return base.joinpath(*parts)
