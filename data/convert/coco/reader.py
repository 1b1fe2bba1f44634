"""A folder in COCO layout → pictures with boxes."""

import posixpath
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.coco_checks import Boxes, check_annotations, check_categories, check_images
from data.coco_json import Source, read_document
from data.convert.categories import check_names
from data.convert.dataset import SPLITS, Box, DataSet, Header, Picture, Split, cut_to_picture
from data.convert.findings import Findings
from data.convert.pictures import check_size, read_header
from data.convert.progress import shown
from ssd.categories import Categories
from ssd.config import DataConfig
from ssd.errors import UserError


def read_coco(source: Path, findings: Findings) -> DataSet:
    """Read the folder that `data.path=` names, `train` alone where it has no validation annotations.

    Boxes without area inside their picture have no counterpart elsewhere: left out, and counted.
    Raises UserError: at the first bad entry of an annotation file, with every bad picture.
    """
    layout = DataConfig(path=str(source))
    files: dict[Split, Path] = {split: layout.locate(f"{split}_annotations") for split in SPLITS}
    if not files["train"].is_file():
        raise UserError(f"{files['train']} is missing; give a folder in COCO layout")
    pictures: dict[Split, tuple[Picture, ...]] = {}
    categories: dict[Split, Categories] = {}
    for split, file in files.items():
        if file.is_file():
            place = Source(file, layout.locate(f"{split}_images"), split)
            categories[split], pictures[split] = _read_split(place, findings)
    if "val" in categories:
        categories["train"].check_scored_by(categories["val"], files["val"])
    findings.stop_at_problems(source)
    return DataSet(check_names(categories["train"].names, f"{files['train']}: categories"), pictures)


def _read_split(source: Source, findings: Findings) -> tuple[Categories, tuple[Picture, ...]]:
    document = read_document(source)
    categories = check_categories(document.categories, source)
    image_ids, sizes_px = check_images(document.images, source)
    boxes = check_annotations(document.annotations, image_ids, categories, source)
    pictures = []
    rows_of_image = list(_rows_of_image(boxes, len(image_ids)))
    for image, rows in enumerate(shown(rows_of_image, f"reading {source.split}")):
        with findings.collect(f"{source.annotation_file}: images[{image}] (id {image_ids[image]})"):
            name = posixpath.normpath(document.images[image].file_name)
            header = read_header(source.image_folder / name, findings)
            check_size(header, *sizes_px[image].tolist())
            found = tuple(_boxes(boxes.where(rows), categories, header, name, findings))
            pictures.append(Picture(source.image_folder / name, name, header, found))
    return categories, tuple(pictures)


def _rows_of_image(boxes: Boxes, images: int) -> list[NDArray[np.int64]]:
    """Return the places of each image's boxes, in the order of the file."""
    in_image_order = np.argsort(boxes.images, kind="stable")
    ends = np.cumsum(np.bincount(boxes.images, minlength=images))
    return np.split(in_image_order, ends[:-1])


def _boxes(
    boxes: Boxes, categories: Categories, header: Header, name: str, findings: Findings
) -> Iterator[Box]:
    """Yield the boxes of one picture."""
    for label, ltwh_px, crowd in zip(boxes.labels, boxes.ltwh_px.tolist(), boxes.crowd, strict=True):
        left, top, width, height = ltwh_px
        try:
            inside_ltwh_px, over_px = cut_to_picture((left, top, width, height), header)
        except UserError:
            findings.count("boxes without area inside their picture are left out", name)
            continue
        findings.count_cut(name, over_px)
        yield Box(categories.name_of(int(label)), inside_ltwh_px, bool(crowd))
