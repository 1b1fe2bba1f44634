"""Write the embedded set to a folder in COCO's layout: all or nothing, and only if it isn't there yet."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.demo.objects import CATEGORIES
from data.demo.scene import make_scene
from ssd.errors import UserError

TRAIN_IMAGES = 240
VAL_IMAGES = 40
SEED = 1  # its validation images have all three sizes and similar counts of each category
EDITION = 1  # raise it when the pictures change, so that an older set isn't taken for this one

JPEG_QUALITY = 90
PARAMETERS_FILE = "demo.json"
SPLITS = ("train", "val")  # a split's index is part of the random key
IDS_PER_SPLIT = 100_000  # the splits never share an image id, whatever their counts


@dataclass(frozen=True)
class Parameters:
    """What determines every byte of a set, given the versions of NumPy and Pillow."""

    train_images: int
    val_images: int
    seed: int
    edition: int = EDITION

    def __post_init__(self) -> None:
        """Raise UserError for a count beyond the range of image ids or a seed that is negative."""
        for split in SPLITS:
            count = self.images(split)
            if not 1 <= count < IDS_PER_SPLIT:
                raise UserError(f"{count} {split} images: give --{split}-images 1 to {IDS_PER_SPLIT - 1}")
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative: give --seed 0 or more")

    def images(self, split: str) -> int:
        """Return the number of images in a split."""
        return {"train": self.train_images, "val": self.val_images}[split]


def generate(
    folder: Path, train_images: int = TRAIN_IMAGES, val_images: int = VAL_IMAGES, seed: int = SEED
) -> None:
    """Write the embedded set to a folder, in COCO's layout.

    The same arguments give the same bytes with the same versions of NumPy and Pillow. An image doesn't depend
    on how many follow it. The folder appears once complete; one that already holds this set is left as is.
    Raises UserError if the folder holds anything else or a count or seed is out of range.
    """
    parameters = Parameters(train_images, val_images, seed)
    folder = folder.absolute()
    if _holds_this_set(folder, parameters):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        (unfinished / "annotations").mkdir(parents=True)
        for split in SPLITS:
            _write_split(unfinished, split, parameters)
        (unfinished / PARAMETERS_FILE).write_text(json.dumps(asdict(parameters), indent=1) + "\n")
        unfinished.rename(folder)


def report(folder: Path) -> str:
    """Describe a finished set: its images, its boxes, and its boxes per category and per COCO size."""
    lines = []
    for split in SPLITS:
        content = json.loads(_annotation_file(folder, split).read_text())
        annotations = content["annotations"]
        names = {category["id"]: category["name"] for category in content["categories"]}
        of_category = Counter(names[one["category_id"]] for one in annotations)
        of_size = Counter(_size_of(one["area"]) for one in annotations)
        empty = len(content["images"]) - len({one["image_id"] for one in annotations})
        lines += [
            f"{split}: {len(content['images'])} images ({empty} without objects), {len(annotations)} boxes",
            "  " + ", ".join(f"{of_category[name]} {name}" for name in names.values()),
            "  " + ", ".join(f"{of_size[size]} {size}" for size in ("small", "medium", "large")),
        ]
    return "\n".join(lines)


def _holds_this_set(folder: Path, parameters: Parameters) -> bool:
    """Return whether the folder already holds the set; raise UserError if it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    fix = "delete it, or give another folder"
    stored = folder / PARAMETERS_FILE
    if not stored.is_file():
        raise UserError(f"{folder} holds something that is not an embedded set: {fix}")
    try:
        found = json.loads(stored.read_text())
    except ValueError as error:
        raise UserError(f"{stored} cannot be read ({error}): {fix}") from error
    wanted = asdict(parameters)
    if found != wanted:
        raise UserError(f"{folder} holds an embedded set made with {found}, not {wanted}: {fix}")
    return True


def _write_split(folder: Path, split: str, parameters: Parameters) -> None:
    images_folder = folder / f"{split}2017"
    images_folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(parameters.images(split)):
        picture, seen = make_scene(parameters.seed, SPLITS.index(split), index)
        image_id = SPLITS.index(split) * IDS_PER_SPLIT + index + 1
        name = f"{image_id:012}.jpg"
        picture.save(images_folder / name, quality=JPEG_QUALITY)
        images.append({"id": image_id, "file_name": name, "width": picture.width, "height": picture.height})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image_id,
                "category_id": one.category.id,
                "bbox": one.box_ltwh_px,
                "area": one.area_px,
                "iscrowd": 0,
            }
            for number, one in enumerate(seen, start=1)
        ]
    content = {
        "info": {"description": "embedded demonstration set", **asdict(parameters)},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": one.id, "name": one.name, "supercategory": one.supercategory} for one in CATEGORIES
        ],
    }
    _annotation_file(folder, split).write_text(json.dumps(content))


def _annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


def _size_of(area_px: float) -> str:
    """Name the COCO size of an area: small below 32², large from 96²."""
    if area_px < 32**2:
        return "small"
    return "medium" if area_px < 96**2 else "large"
