"""Make a data set of any multiple of COCO's size: python scripts/make_large_set.py DIR [--times 1].

The annotation files are like COCO's: 118,287 training images and 860,001 boxes with polygons, 477 MB,
times what is asked for, with its keys. Each image has its file: hard links to a few copies of one picture.
"""

import argparse
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAIN_IMAGES, TRAIN_BOXES = 118_287, 860_001
VAL_IMAGES, VAL_BOXES = 5_000, 36_781
WITHOUT_BOXES = 0.0086  # of COCO's training images
CATEGORIES = 80
WIDTH, HEIGHT = 640, 480
POLYGON_CORNERS = 24.0  # in the mean; gives COCO's bytes a box
POLYGONS = 4096  # different ones, drawn once: what is measured reads over them
URL = "http://images.cocodataset.org/train2017"
LINKS = 60_000  # a file can have 65,000 names on ext4


def main(arguments: list[str]) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make a data set of any multiple of COCO's size.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put it: a new folder")
    parser.add_argument("--times", type=int, default=1, help="training images by COCO's, default %(default)s")
    options = parser.parse_args(arguments)
    if options.times < 1:
        parser.error(f"--times {options.times}: give 1 or more")
    if options.folder.exists():
        parser.error(f"{options.folder} exists: name a new folder")
    (options.folder / "annotations").mkdir(parents=True)
    for split, images, boxes in (
        ("train", options.times * TRAIN_IMAGES, options.times * TRAIN_BOXES),
        ("val", VAL_IMAGES, VAL_BOXES),
    ):
        file = options.folder / "annotations" / f"instances_{split}2017.json"
        write_annotations(file, images, boxes)
        link_pictures(options.folder / f"{split}2017", images)
        print(f"{file}: {images} images, {boxes} boxes, {file.stat().st_size / 1e6:.0f} MB")


def write_annotations(file: Path, images: int, boxes: int) -> None:
    """Write an annotation file with COCO's keys; the same numbers give the same file."""
    rng = np.random.default_rng(0)
    with file.open("w") as out:
        out.write('{"info": {"description": "made to measure start-up"}, "licenses": [], "images": [')
        _write_list(out, (_image(number) for number in range(1, images + 1)))
        out.write('], "annotations": [')
        _write_list(out, _annotations(images, boxes, rng))
        out.write('], "categories": [')
        _write_list(
            out,
            (
                f'{{"supercategory": "thing", "id": {number}, "name": "class {number}"}}'
                for number in range(1, CATEGORIES + 1)
            ),
        )
        out.write("]}")


def link_pictures(folder: Path, images: int) -> None:
    """Give each image a file: hard links to copies of one photograph-like JPEG."""
    folder.mkdir()
    picture = _picture()
    original = ""
    for number in range(1, images + 1):
        path = os.path.join(folder, _file_name(number))
        if number % LINKS == 1:
            original = path
            Path(path).write_bytes(picture)
        else:
            os.link(original, path)


def _write_list(out: TextIO, entries: Iterator[str]) -> None:
    out.write(next(entries))
    out.writelines(f", {entry}" for entry in entries)


def _file_name(number: int) -> str:
    return f"{number:012d}.jpg"


def _image(number: int) -> str:
    name = _file_name(number)
    return (
        f'{{"license": 3, "file_name": "{name}", "coco_url": "{URL}/{name}", '
        f'"height": {HEIGHT}, "width": {WIDTH}, "date_captured": "2013-11-14 11:18:45", '
        f'"flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg", "id": {number}}}'
    )


def _annotations(images: int, boxes: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield boxes in no order of their images, as in COCO's file."""
    polygons = [_polygon(rng) for _ in range(POLYGONS)]
    with_boxes = rng.permutation(images)[: round(images * (1 - WITHOUT_BOXES))] + 1
    # Each image with boxes has one at least, the rest fall where they fall.
    rest = with_boxes[rng.integers(0, len(with_boxes), boxes - len(with_boxes))]
    image_ids = rng.permutation(np.concatenate((with_boxes, rest)))
    for first in range(0, boxes, POLYGONS):  # in blocks: tens of millions of Python numbers take gigabytes
        ids = image_ids[first : first + POLYGONS].tolist()
        ltwh_px = _boxes(len(ids), rng).tolist()
        categories = rng.integers(1, CATEGORIES + 1, len(ids)).tolist()
        crowd = (rng.random(len(ids)) < 0.012).astype(int).tolist()
        for place, (image_id, box, category) in enumerate(zip(ids, ltwh_px, categories, strict=True)):
            yield (
                f'{{"segmentation": [[{polygons[place]}]], "area": {box[2] * box[3]:.5f}, "iscrowd": '
                f'{crowd[place]}, "image_id": {image_id}, "bbox": {box}, "category_id": {category}, '
                f'"id": {first + place + 1}}}'
            )


def _boxes(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw boxes ltwh in pixels inside the picture, most of them small; a few in ten thousand are empty."""
    ends = rng.random((count, 2)) ** 2 * [WIDTH, HEIGHT]
    size = ends * (rng.random((count, 1)) > 0.0005)
    left_top = rng.random((count, 2)) * ([WIDTH, HEIGHT] - size)
    return np.concatenate((left_top, size), axis=1).round(2)


def _polygon(rng: np.random.Generator) -> str:
    corners = 3 + int(rng.exponential(POLYGON_CORNERS - 3))
    values = (rng.random((corners, 2)) * [WIDTH, HEIGHT]).round(2)
    return ", ".join(map(str, values.flatten().tolist()))


def _picture() -> bytes:
    """Return a JPEG of about 100 kB, a COCO picture's size: noise of many scales."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for cells in (4, 16, 64, 256):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        scaled = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += np.asarray(scaled) / 4
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
