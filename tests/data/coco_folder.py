"""Small COCO data sets that the tests write."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.index import CocoIndex, Selection, read_index

Entry = dict[str, Any]
EVERY_VAL_IMAGE = Selection(split="val", images_without_boxes=True)

DOCUMENT: dict[str, Any] = {
    "info": {"year": 2026},
    "categories": [{"id": 7, "name": "bird"}, {"id": 90, "name": "bus"}],
    "images": [
        {"id": 30, "file_name": "b.png", "width": 200, "height": 100},
        {"id": 10, "file_name": "sub/é.png", "width": 64, "height": 48},
        {"id": 20, "file_name": "a.png", "width": 10, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 30, "category_id": 7, "bbox": [20, 10, 100, 50], "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 90, "bbox": [-3.5, 2.25, 8, 100], "iscrowd": 1},
        {"id": 3, "image_id": 30, "category_id": 90, "bbox": [0, 0, 200, 100], "segmentation": [[1, 2, 3]]},
    ],
}
"""What a sound annotation file holds."""


@dataclass
class CocoFolder:
    """An annotation file and an image folder, to be changed by a test and then written."""

    folder: Path
    images: list[Entry] = field(default_factory=list)
    annotations: list[Entry] = field(default_factory=list)
    categories: list[Entry] = field(
        default_factory=lambda: [
            {"id": n, "name": name} for n, name in ((7, "bird"), (90, "bus"), (3, "cup"))
        ]
    )

    @property
    def annotation_file(self) -> Path:
        return self.folder / "annotations.json"

    @property
    def image_folder(self) -> Path:
        return self.folder / "pictures"

    def add(
        self, image_id: int, pixels: np.ndarray, boxes_ltwh_px: list[tuple[float, ...]], name: str = ""
    ) -> None:
        """Add a picture H×W×3 with boxes, whose categories go round."""
        name = name or f"{image_id}.png"
        (self.image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.image_folder / name)
        height, width = pixels.shape[:2]
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for box in boxes_ltwh_px:
            number = len(self.annotations)
            category = self.categories[number % len(self.categories)]["id"]
            self.annotations.append(
                {"id": 1000 + number, "image_id": image_id, "category_id": category, "bbox": list(box)}
            )

    def write(self) -> "CocoFolder":
        document = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        self.annotation_file.write_text(json.dumps(document))
        return self


def noise(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a picture in which no two places look alike."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_folder(folder: Path, images: int) -> CocoFolder:
    """Write noise pictures of different sizes with one to three boxes; ids are 100, 101, …"""
    rng = np.random.default_rng(5)
    data = CocoFolder(folder)
    for number in range(images):
        width, height = (int(side) for side in rng.integers(60, 200, 2))
        boxes = [
            (rng.uniform(0, width / 2), rng.uniform(0, height / 2), width * rng.uniform(0.1, 0.5), height / 3)
            for _ in range(1 + number % 3)
        ]
        data.add(100 + number, noise(rng, width, height), boxes)
    return data.write()


@contextmanager
def cut_short(path: Path) -> Iterator[None]:
    """Leave only the beginning of a file there for a while."""
    content = path.read_bytes()
    path.write_bytes(content[:200])
    try:
        yield
    finally:
        path.write_bytes(content)


def crashing_jpeg_2000() -> bytes:
    """Write a JPEG 2000 with tiles of width 0, by which the parser in DALI divides."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG2000")
    content = bytearray(file.getvalue())
    size_marker = content.index(b"\xff\x51")
    content[size_marker + 22 : size_marker + 26] = bytes(4)
    return bytes(content)


def three_pictures(folder: Path) -> CocoFolder:
    """Three pictures of 200×100 pixels; the second has no box, ids and file names are out of order."""
    data = CocoFolder(folder)
    grey = np.full((100, 200, 3), 128, np.uint8)
    data.add(30, grey, [(20, 10, 100, 50), (0, 0, 200, 100)], "b.png")
    data.add(10, grey, [], "sub/c.png")
    data.add(20, grey, [(50, 25, 50, 25)], "sub/deep/a.png")
    return data


def index_of(data: CocoFolder, selection: Selection | None = None) -> CocoIndex:
    """Write the data set and read its index."""
    data.write()
    return read_index(data.annotation_file, data.image_folder, selection)
