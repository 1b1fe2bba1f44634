"""The COCO layout that `data.path=` reads: an annotation file and a folder of pictures for each split."""

import itertools
import posixpath
from pathlib import Path

import msgspec

from data.convert.dataset import (
    EXACT_DECIMALS,
    SPLIT_NAMES,
    Box,
    DataSet,
    Finding,
    Picture,
    Split,
    check_names,
    defects_into,
    gather,
    open_picture,
    place_pictures,
    shown,
    write_text,
)
from ssd.annotations import Annotations, read_annotations
from ssd.config import coco_place
from ssd.errors import UserError


def read_coco(source: Path, classes_file: Path | None) -> tuple[DataSet, list[Finding]]:
    """Read the folder that `data.path=` names, `with the splits it has annotations of.

    Boxes without area inside their picture have no counterpart elsewhere: left out, and counted.
    Raises UserError: at the first bad entry of an annotation file, with every bad picture.
    """
    if classes_file is not None:
        raise UserError(f"--classes {classes_file}: COCO annotations name their categories; leave it out")
    places = {split: coco_place(source, f"{split}_annotations") for split in SPLIT_NAMES}
    files = {split: file for split, file in places.items() if file.exists()}
    if "train" not in files:
        raise UserError(f"{places['train']} is missing; give a folder in COCO layout")
    annotations = {
        split: read_annotations(file, f"data.{split}_annotations") for split, file in files.items()
    }
    categories = annotations["train"].categories
    for split, content in annotations.items():
        categories.check_scored_by(content.categories, files[split])
    splits: dict[Split, list[Picture]] = {split: [] for split in files}
    findings: list[Finding] = []
    for split, content in annotations.items():
        folder = coco_place(source, f"{split}_images")
        for image in shown(range(len(content)), f"reading {split}"):
            with defects_into(findings, f"{files[split]}: images[{image}] (id {content.image_ids[image]})"):
                splits[split].append(_read_picture(content, image, folder))
    findings = gather(source, findings, splits)
    return DataSet(check_names(categories.names, f"{files['train']}: categories"), splits), findings


def _read_picture(annotations: Annotations, image: int, folder: Path) -> Picture:
    name = posixpath.normpath(annotations.file_names[image])
    width, height = annotations.sizes_px[image].tolist()
    picture = open_picture(folder / name, name, (width, height))
    rows = slice(*annotations.box_starts[image : image + 2])
    columns = (annotations.boxes_ltwh_px[rows], annotations.labels[rows], annotations.crowd[rows])
    for ltwh_px, label, crowd in zip(*(column.tolist() for column in columns), strict=True):
        try:
            picture.add(Box(annotations.categories.name_of(label), tuple(ltwh_px), crowd), name)
        except UserError:
            what = "boxes without area inside their picture are left out"
            picture.findings.append(Finding(what, name))
    return picture


def write_coco(data: DataSet, folder: Path, link: str) -> list[Finding]:
    """Write all splits, ids counted from 1 through both, in the order given; `area` is the box's."""
    category_ids = {name: place for place, name in enumerate(data.categories, start=1)}
    categories = [{"id": place, "name": name} for name, place in category_ids.items()]
    image_ids, annotation_ids = itertools.count(1), itertools.count(1)
    for split, pictures in data.splits.items():
        place_pictures(pictures, coco_place(folder, f"{split}_images"), link)
        images, annotations = [], []
        for picture in pictures:
            image_id = next(image_ids)
            size = {"width": picture.width, "height": picture.height}
            images.append({"id": image_id, "file_name": picture.name, **size})
            for box in picture.boxes:
                _, _, width, height = ltwh_px = [round(value, EXACT_DECIMALS) for value in box.ltwh_px]
                annotations.append(
                    {
                        "id": next(annotation_ids),
                        "image_id": image_id,
                        "category_id": category_ids[box.category],
                        "bbox": ltwh_px,
                        "area": round(width * height, EXACT_DECIMALS),
                        "iscrowd": int(box.crowd),
                    }
                )
        document = {"images": images, "annotations": annotations, "categories": categories}
        write_text(coco_place(folder, f"{split}_annotations"), msgspec.json.encode(document).decode())
    return []
