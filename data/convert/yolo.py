"""YOLO as Ultralytics, Roboflow and darknet lay it out: a text file per picture, `class cx cy w h`."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import yaml  # type: ignore[import-untyped]

from data.convert.dataset import (
    CLASSES_FILE,
    SPLIT_NAMES,
    Box,
    Found,
    Picture,
    Split,
    Splits,
    find_files,
    open_picture,
    read_lines,
    split_by_folder,
    write_text,
)
from ssd.errors import UserError

_CONFIG_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES_FILES = (CLASSES_FILE, "obj.names")
_Pictures = list[tuple[Path, str]]
"""Each file with its name in the split."""


class _Config(msgspec.Struct):
    """data.yaml: folders or list files of each split, and the category names by index."""

    path: str = "."
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    names: list[str] | dict[int, str] | None = None


def find_yolo(source: Path, classes_file: Path | None) -> Found:
    """Find the pictures of a folder or data.yaml; splits are where that says, else in the usual places.

    Without splits everything is one set. classes_file: the category names by index; default: those of the
    source's data.yaml, classes.txt or obj.names. A picture without a label file has no objects.
    """
    config_file = next((source / name for name in _CONFIG_FILES if (source / name).exists()), None)
    if source.is_file():
        config_file, source = source, source.parent
    try:
        content = config_file.read_bytes() if config_file else b"{}"
        config = msgspec.convert(yaml.safe_load(content), _Config)
    except (msgspec.ValidationError, yaml.YAMLError, RecursionError, ValueError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{config_file}: {what}; correct it (quote names like 3 or yes)") from error
    names = _category_names(source, config, classes_file)
    found = Found(names, {})
    for split, pictures in _find_pictures(source, config).items():
        entries = [(_label_file(source, file), file, name) for file, name in pictures]
        is_annotated = any(labels.exists() for labels, _, _ in entries)
        found.readers[split] = [partial(_read_picture, *entry, names) for entry in entries if is_annotated]
        expected = {labels for labels, _, _ in entries}
        folders = {labels.parent for labels in expected} - {file.parent for file, _ in pictures}
        orphans = {labels for folder in folders for labels in folder.glob("[!.]*.txt")} - expected
        found.notes.extend(("label files ignored, having no picture", labels) for labels in sorted(orphans))
    return found


def _category_names(source: Path, config: _Config, classes_file: Path | None) -> list[str]:
    names = config.names
    if classes_file is None and names is None:
        classes_file = next((source / name for name in _NAMES_FILES if (source / name).exists()), None)
    if classes_file is not None:
        return read_lines(classes_file)
    if names is None:
        raise UserError(
            f"{source}: no data.yaml with `names`, no {' and no '.join(_NAMES_FILES)}; give --classes FILE"
        )
    if isinstance(names, list):
        return names
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{source}: the indices of `names` are {sorted(names)}; number them 0, 1, 2, …")
    return [names[index] for index in range(len(names))]


def _find_pictures(source: Path, config: _Config) -> dict[Split, _Pictures]:
    """Return the pictures in data.yaml's folders and lists, else in the usual ones."""
    places = {split: getattr(config, split) for split in SPLIT_NAMES}
    if not places["train"]:
        lists = [(split, f"{name}.txt") for split, names in SPLIT_NAMES.items() for name in names]
        places = {split: file for split, file in lists if (source / file).exists()}
    if "train" not in places:
        base = source / "images" if (source / "images").exists() else source
        splits = split_by_folder(find_files(base))
        return {
            split: [(base / path, name.removeprefix("images/")) for path, name in names.items()]
            for split, names in splits.items()
        }
    pictures: dict[Split, _Pictures] = {}
    for split, given in places.items():
        for place in [given] if isinstance(given, str) else given or []:
            pictures.setdefault(split, []).extend(_pictures_of(source, config, split, place))
    return pictures


def _pictures_of(source: Path, config: _Config, split: Split, place: str) -> _Pictures:
    """Return the pictures in a folder, or those that a list file names.

    Tools write a `path` valid on their own machine, and ../train/images instead of train/images: paths inside
    the source are tried first. A test split may be missing.
    """
    inside = place if os.path.isabs(place) else place.lstrip("./")
    paths = [os.path.normpath(source / path) for path in (inside, Path(config.path, place))]
    path = Path(next(filter(os.path.exists, paths), paths[0]))
    if path.is_dir():
        return [(path / name, name) for name in find_files(path)]
    if not path.exists():
        if split == "test":
            return []
        raise UserError(f"{source}: {split}: {place} in its yaml file does not exist; correct the entry")
    files = []
    for line in filter(None, read_lines(path)):
        # Darknet's lines begin with data/, which is not a folder. Reading reports missing files.
        names = [os.path.normpath(source / name) for name in (line, line.removeprefix("data/"))]
        files.append(Path(next(filter(os.path.isfile, names), names[0])))
    top = os.path.commonpath([file.parent for file in files]) if files else ""
    return [(file, file.relative_to(top).as_posix()) for file in sorted(files)]


def _label_file(source: Path, picture: Path) -> Path:
    """Map images/…/a.jpg to labels/…/a.txt at the path's last `images`, else to the txt beside it."""
    base = source if picture.is_relative_to(source) else Path(picture.anchor)
    above, images, below = f"/{picture.relative_to(base).with_suffix('.txt')}".rpartition("/images/")
    return base / f"{above}/labels/{below}".lstrip("/") if images else picture.with_suffix(".txt")


def _read_picture(labels: Path, file: Path, name: str, names: list[str]) -> Picture:
    picture = open_picture(file, name)
    if not labels.exists():
        picture.notes.append(("pictures kept without boxes because they have no label file", file))
        return picture
    for row, words in enumerate(map(str.split, read_lines(labels)), start=1):
        where = f"{labels}: line {row}"
        if words:
            picture.add(_read_object(words, names, picture, where), where)
        if len(words) > 5:
            picture.notes.append(("polygons replaced by bounding boxes", where))
    return picture


def _read_object(words: list[str], names: list[str], picture: Picture, where: str) -> Box:
    """Return the box of `class cx cy w h`, or the bounding box of the polygon `class x y x y x y …`."""
    try:
        index, *values = map(float, words)
    except ValueError as error:
        raise UserError(f"{where}: {error}; correct it") from error
    if index not in range(len(names)):
        raise UserError(
            f"{where}: class index {index:g} is not a whole number from 0 to {len(names) - 1}; correct it, "
            "or add the name"
        )
    if len(values) == 4:
        cx, cy, width, height = values
        left, top = cx - width / 2, cy - height / 2
    elif len(values) >= 6 and len(values) % 2 == 0:
        left, top = min(values[::2]), min(values[1::2])
        width, height = max(values[::2]) - left, max(values[1::2]) - top
    else:
        raise UserError(
            f"{where}: {len(words)} numbers are neither class cx cy w h nor class x y x y x y …; correct it"
        )
    ltwh_px = (left * picture.width, top * picture.height, width * picture.width, height * picture.height)
    return Box(names[int(index)], ltwh_px)


def write_yolo(names: Sequence[str], splits: Splits, folder: Path) -> None:
    """Write labels/, data.yaml and classes.txt; crowd boxes are left out: YOLO has no flag for them.

    A picture without boxes gets an empty label file.
    """
    indices = {name: index for index, name in enumerate(names)}
    for split, pictures in splits.items():
        for picture in pictures:
            lines = []
            for box in picture.boxes:
                if box.crowd:
                    what = "crowd boxes left out, as YOLO has no flag for them"
                    picture.notes.append((what, picture.file))
                    continue
                left, top, width, height = box.ltwh_px
                cx, cy = (left + width / 2) / picture.width, (top + height / 2) / picture.height
                sides = f"{width / picture.width!r} {height / picture.height!r}"
                lines.append(f"{indices[box.category]} {cx!r} {cy!r} {sides}\n")
            write_text(folder / f"labels/{split}/{picture.stem}.txt", "".join(lines))
    # Without `path`, folders are relative to data.yaml.
    config = {split: f"images/{split}" for split in splits} | {"names": dict(enumerate(names))}
    (folder / "data.yaml").write_bytes(msgspec.yaml.encode(config))
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in names))
