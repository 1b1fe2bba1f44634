"""Pictures with boxes → a folder of YOLO files: images/, labels/, data.yaml and classes.txt."""

from pathlib import Path

import msgspec

from data.convert.categories import CLASSES_FILE
from data.convert.dataset import DataSet, Header, Ltwh, Picture
from data.convert.findings import Findings
from data.convert.folder import Link, place_pictures
from data.convert.progress import shown


def write_yolo(data: DataSet, folder: Path, link: Link, findings: Findings) -> None:
    """Write the two splits; crowd boxes, which YOLO has no mark for, are left out.

    A picture without boxes gets an empty label file. Raises UserError where pictures would share one.
    """
    indices = {name: index for index, name in enumerate(data.categories)}
    for split in data.splits:
        pictures = data.by_stem((split,))
        place_pictures(pictures.values(), folder / "images" / split, link)
        for stem, picture in shown(list(pictures.items()), f"labels of {split}"):
            file = folder / "labels" / split / f"{stem}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(_lines(picture, indices, findings)))
    # Without `path` the folders are relative to the file.
    config = {split: f"images/{split}" for split in data.splits} | {"names": dict(enumerate(data.categories))}
    (folder / "data.yaml").write_bytes(msgspec.yaml.encode(config))
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in data.categories), encoding="utf-8")


def _lines(picture: Picture, indices: dict[str, int], findings: Findings) -> list[str]:
    lines = []
    for box in picture.boxes:
        if box.crowd:
            findings.count("crowd boxes are left out: YOLO has no mark for them", picture.file)
            continue
        values = _relative_cxcywh(box.ltwh_px, picture.header)
        lines.append(" ".join([str(indices[box.category]), *map(repr, values)]) + "\n")
    return lines


def _relative_cxcywh(ltwh_px: Ltwh, header: Header) -> tuple[float, float, float, float]:
    left, top, width, height = ltwh_px
    return (
        (left + width / 2) / header.width,
        (top + height / 2) / header.height,
        width / header.width,
        height / header.height,
    )
