"""Writers of small VOC, YOLO and COCO folders, and readers of conversion results, for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.convert import Options, convert

Corners = tuple[object, object, object, object]
Row = tuple[str, tuple[float, ...], int]  # category name, ltwh_px, iscrowd
YOLO_LINE = "0 0.5 0.5 0.25 0.5\n"


def picture(file: Path, width: int = 200, height: int = 100) -> Path:
    """Write a grey picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(file)
    return file


def voc_object(name: str, corners: Corners, difficult: str = "<difficult>0</difficult>") -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inside = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name>{difficult}<bndbox>{inside}</bndbox></object>"


def voc_xml(file: Path, *objects: str, filename: str = "", size: tuple[object, object] = (200, 100)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    file.write_text(
        f"<annotation><filename>{filename or file.stem + '.png'}</filename>{sizes}{''.join(objects)}"
        "</annotation>",
        encoding="utf-8",
    )
    return file


def voc_devkit(folder: Path, **objects: tuple[str, ...]) -> Path:
    """Write a devkit folder with a 200×100 picture per keyword; the first one is in `val`."""
    for stem, things in objects.items():
        picture(folder / "JPEGImages" / f"{stem}.png")
        voc_xml(folder / "Annotations" / f"{stem}.xml", *things)
    voc_list(folder, "val", *list(objects)[:1])
    voc_list(folder, "train", *list(objects)[1:])
    return folder


def voc_list(folder: Path, name: str, *stems: str) -> None:
    file = folder / "ImageSets" / "Main" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{stem}\n" for stem in stems))


def labelled(file: Path, labels: Path, text: str = YOLO_LINE) -> None:
    """Write a 200×100 picture and its YOLO label file."""
    picture(file)
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_text(text)


def yolo_folder(folder: Path, **lines: str) -> Path:
    """Write images/, labels/ and two class names, with a picture per keyword; the first is in `val`."""
    for place, (stem, text) in enumerate(lines.items()):
        split = "train" if place else "val"
        labelled(folder / "images" / split / f"{stem}.png", folder / "labels" / split / f"{stem}.txt", text)
    (folder / "classes.txt").write_text("zebra\nant\n")
    return folder


def coco_folder(folder: Path, splits: dict[str, dict[str, list[Row]]], names: tuple[str, ...]) -> Path:
    """Write a COCO layout with 200×100 pictures; category ids are 5, 15, 25, …"""
    (folder / "annotations").mkdir(parents=True)
    ids = {name: 5 + 10 * place for place, name in enumerate(names)}
    for split, pictures in splits.items():
        images, annotations = [], []
        for image_id, (name, rows) in enumerate(pictures.items(), start=70):
            picture(folder / f"{split}2017" / name)
            images.append({"id": image_id, "file_name": name, "width": 200, "height": 100})
            for category, box, crowd in rows:
                entry = {"id": len(annotations), "image_id": image_id, "category_id": ids[category]}
                annotations.append({**entry, "bbox": box, "iscrowd": crowd})
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return folder


def content(folder: Path, split: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "annotations" / f"instances_{split}2017.json").read_text())
    return loaded


def rows(folder: Path, split: str) -> dict[str, list[Row]]:
    """Return the rows of each picture in a split of a COCO layout, by file name."""
    loaded = content(folder, split)
    names = {category["id"]: category["name"] for category in loaded["categories"]}
    files = {image["id"]: image["file_name"] for image in loaded["images"]}
    found: dict[str, list[Row]] = {name: [] for name in files.values()}
    for one in loaded["annotations"]:
        row = (names[one["category_id"]], tuple(one["bbox"]), one["iscrowd"])
        found[files[one["image_id"]]].append(row)
    return found


def category_names(folder: Path, split: str) -> list[str]:
    return [category["name"] for category in content(folder, split)["categories"]]


def to_coco(source: Path, source_format: str, out: Path, options: Options | None = None) -> list[str]:
    return convert(source, source_format, out, "coco", options or Options())


def from_coco(source: Path, out: Path, out_format: str) -> list[str]:
    return convert(source, "coco", out, out_format, Options())


def said_of(lines: list[str], start: str) -> str:
    """Return the line of a conversion that begins with `start`, "" if none does."""
    return next((line for line in lines if line.startswith(start)), "")
