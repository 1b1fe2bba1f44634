"""YOLO as Ultralytics, Roboflow and darknet lay it out: a text file a picture, `class cx cy w h` a line."""

import os
from pathlib import Path

import msgspec
import yaml  # type: ignore[import-untyped]

from data.convert.dataset import (
    CLASSES_FILE,
    PICTURE_SUFFIXES,
    SPLIT_NAMES,
    Box,
    DataSet,
    Finding,
    Picture,
    Split,
    defects_into,
    find_files,
    number,
    open_picture,
    place_pictures,
    read_bytes,
    read_lines,
    shown,
    unless_test,
    write_text,
)
from ssd.errors import UserError

_CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES_FILES = (CLASSES_FILE, "obj.names")
_USUAL_PLACES = ("{}.txt", "images/{}", "images/{}2017", "{}/images", "{}")
_Entry = tuple[Path, Path, str]
"""A label file, which may be missing; its picture's file and name in the split."""


class _Config(msgspec.Struct):
    """data.yaml: folders or list files of each split, and the category names by index."""

    path: str = "."
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    names: list[str] | dict[int, str] | None = None


def read_yolo(source: Path, classes_file: Path | None) -> DataSet:
    """Read a folder or data.yaml; splits are where that says, else where tools put them, else all is one set.

    classes_file: the category names by index; else data.yaml, classes.txt or obj.names of the source. A
    picture without a label file is one without objects. Raises UserError where there is nothing to read; what
    is wrong with single files is among the findings.
    """
    config_file = next((source / name for name in _CONFIG_FILES if (source / name).exists()), None)
    if source.is_file():
        config_file, source = source, source.parent
    content = read_bytes(config_file) if config_file else b"{}"
    try:
        config = msgspec.convert(yaml.safe_load(content), _Config)
    except (msgspec.ValidationError, yaml.YAMLError, RecursionError, ValueError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{config_file}: {what}; correct it (quote names like 3 or yes)") from error
    names = _category_names(source, config_file, config, classes_file)
    places = _configured_places(source, config) if config.train else _usual_places(source)
    findings: list[Finding] = []
    splits: dict[Split, list[Picture]] = {}
    for split, of_split in places.items():
        with unless_test(split, findings):
            entries, found = _find_entries(source, of_split)
            findings += found
            splits[split] = []
            for labels, file, name in shown(entries, f"reading {split}"):
                with defects_into(findings, labels):
                    splits[split].append(_read_picture(labels, file, name, names))
    return DataSet(names, splits, findings)


def _category_names(
    source: Path, config_file: Path | None, config: _Config, classes_file: Path | None
) -> list[str]:
    names = config.names
    if classes_file is None and names is None:
        classes_file = next((source / name for name in _NAMES_FILES if (source / name).exists()), None)
    if classes_file is not None:
        return read_lines(classes_file)
    if names is None:
        raise UserError(
            f"{source}: no data.yaml with `names`, no {' and no '.join(_NAMES_FILES)} names its categories; "
            "write one a line into a file and give --classes FILE"
        )
    if isinstance(names, list):
        return names
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{config_file}: the indices of `names` are {sorted(names)}; number them 0, 1, 2, …")
    return [names[index] for index in range(len(names))]


def _configured_places(source: Path, config: _Config) -> dict[Split, list[Path]]:
    """Return the folders and list files that data.yaml names, by split.

    Tools write `path` for the machine they ran on, and ../train/images for train/images: what lies in the
    source itself comes first. A test split may be missing.
    """
    places: dict[Split, list[Path]] = {}
    for split in SPLIT_NAMES:
        given = getattr(config, split)
        for place in [given] if isinstance(given, str) else given or []:
            inside = place if os.path.isabs(place) else place.lstrip("./")
            paths = (inside, Path(config.path, place))
            candidates = list(dict.fromkeys(os.path.normpath(source / path) for path in paths))
            found = next(filter(os.path.exists, candidates), None)
            if found is None and split != "test":
                raise UserError(
                    f"{source}: {split}: {place} of its yaml file is not there as {' or '.join(candidates)}; "
                    "correct the entry"
                )
            places.setdefault(split, []).append(Path(found or candidates[0]))
    return places


def _usual_places(source: Path) -> dict[Split, list[Path]]:
    """Return the folder or list file of each split, or one folder with all pictures as `train`."""
    places: dict[Split, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        paths = [source / pattern.format(name) for pattern in _USUAL_PLACES for name in names]
        if found := next(filter(Path.exists, paths), None):
            places[split] = [found]
    if "train" not in places:
        images = source / "images"
        places = {"train": [images if images.exists() else source]}
    return places


def _find_entries(source: Path, places: list[Path]) -> tuple[list[_Entry], list[Finding]]:
    """Return the pictures of a split; what lacks a picture is a defect."""
    entries: list[_Entry] = []
    defects: list[Finding] = []
    for place in places:
        found, unmatched = _in_folder(source, place) if place.is_dir() else _in_list(source, place)
        entries += found
        defects += unmatched
    if not entries and not defects:
        raise UserError(f"{places[0]} holds no picture ({' '.join(PICTURE_SUFFIXES)}); add some")
    if not defects and not any(labels.is_file() for labels, _, _ in entries):
        labels, file, _ = entries[0]
        raise UserError(
            f"none of {len(entries)} pictures has a label file, {file}, say, no {labels}; put "
            "the label files there"
        )
    return entries, defects


def _in_folder(source: Path, folder: Path) -> tuple[list[_Entry], list[Finding]]:
    """Return a folder's pictures. Label files without one, in folders of label files alone, are defects."""
    names = find_files(folder, PICTURE_SUFFIXES)
    entries = [(_label_file(source, folder / name), folder / name, name) for name in names]
    expected = {labels for labels, _, _ in entries}
    label_folders = {labels.parent for labels in expected} - {file.parent for _, file, _ in entries}
    orphans = {labels for folder in label_folders for labels in folder.glob("[!.]*.txt")} - expected
    what = "no picture belongs to it; add the picture, or remove the file"
    return entries, [Finding(what, labels, defect=True) for labels in sorted(orphans)]


def _in_list(source: Path, list_file: Path) -> tuple[list[_Entry], list[Finding]]:
    """Return the pictures that a list file names; darknet's lines begin with data/, which is no folder."""
    files, defects = [], []
    for row, line in enumerate(read_lines(list_file), start=1):
        paths = [Path(os.path.normpath(source / name)) for name in (line, line.removeprefix("data/"))]
        if file := next(filter(Path.is_file, paths), None):
            files.append(file)
        elif line:
            what = f"there is no picture {line!r}; correct or remove the line"
            defects.append(Finding(what, f"{list_file}: line {row}", defect=True))
    top = os.path.commonpath([file.parent for file in files]) if files else ""
    files.sort()
    return [(_label_file(source, file), file, file.relative_to(top).as_posix()) for file in files], defects


def _label_file(source: Path, picture: Path) -> Path:
    """Return images/…/a.jpg → labels/…/a.txt for the last `images` of the path, else the txt beside."""
    base = source if picture.is_relative_to(source) else Path(picture.anchor)
    above, images, below = f"/{picture.relative_to(base).with_suffix('.txt')}".rpartition("/images/")
    return base / f"{above}/labels/{below}".lstrip("/") if images else picture.with_suffix(".txt")


def _read_picture(labels: Path, file: Path, name: str, names: list[str]) -> Picture:
    has_labels = labels.exists()
    lines = read_lines(labels) if has_labels else []
    picture = open_picture(file, name)
    if not has_labels:
        what = "pictures have no label file: kept as pictures without objects"
        picture.findings.append(Finding(what, file))
    for row, words in enumerate(map(str.split, lines), start=1):
        where = f"{labels}: line {row}"
        with defects_into(picture.findings, where):
            if words:
                picture.add(_read_object(words, names, picture), where)
        if len(words) > 5:
            what = "polygons are replaced by the boxes around them"
            picture.findings.append(Finding(what, where))
    return picture


def _read_object(words: list[str], names: list[str], picture: Picture) -> Box:
    """Return the box of `class cx cy w h`, or the one around the polygon `class x y x y x y …`."""
    index = number(words[0], "class index")
    if index not in range(len(names)):
        raise UserError(
            f"class index {index:g} is none of the names' 0 to {len(names) - 1}; correct it, or add the name"
        )
    values = [number(word, "coordinate") for word in words[1:]]
    if len(values) == 4:
        cx, cy, width, height = values
        left, top = cx - width / 2, cy - height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        left, top = min(values[::2]), min(values[1::2])
        width, height = max(values[::2]) - left, max(values[1::2]) - top
    else:
        raise UserError(f"{len(words)} numbers, neither class cx cy w h nor class x y x y x y …; correct it")
    ltwh_px = (left * picture.width, top * picture.height, width * picture.width, height * picture.height)
    return Box(names[int(index)], ltwh_px)


def write_yolo(data: DataSet, folder: Path, link: str) -> list[Finding]:
    """Write images/, labels/, data.yaml and classes.txt; crowd boxes are left out: YOLO has no mark for them.

    A picture without boxes gets an empty label file. Raises UserError where pictures would share one.
    """
    indices = {name: index for index, name in enumerate(data.categories)}
    findings = []
    for split, pictures in data.splits.items():
        for picture in shown(pictures, f"labels of {split}"):
            full_width, full_height = picture.width, picture.height
            lines = []
            for box in picture.boxes:
                if box.crowd:
                    what = "crowd boxes are left out: YOLO has no mark for them"
                    findings.append(Finding(what, picture.file))
                    continue
                left, top, width, height = box.ltwh_px
                cx, cy = (left + width / 2) / full_width, (top + height / 2) / full_height
                index = indices[box.category]
                lines.append(f"{index} {cx!r} {cy!r} {width / full_width!r} {height / full_height!r}\n")
            write_text(folder / f"labels/{split}/{picture.stem}.txt", "".join(lines), picture)
        place_pictures(pictures, folder / "images" / split, link)
    # Without `path` the folders are relative to the file.
    config = {split: f"images/{split}" for split in data.splits} | {"names": dict(enumerate(data.categories))}
    (folder / "data.yaml").write_bytes(msgspec.yaml.encode(config))
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in data.categories))
    return findings
