"""A sound data set in COCO's layout, and every defect that the doctor knows, each in its own entry."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.doctor.findings import Kind
from ssd.annotations import entry_name
from tests.data.coco_folder import CocoFolder, noise

Entry = dict[str, Any]
Expected = set[tuple[str, Kind, str]]
"""Split name, kind and place of each finding."""


@dataclass
class Split:
    """One split's annotation file and folder; `expected` grows with each planted defect."""

    name: str
    annotation_file: Path
    folder: Path
    document: dict[str, list[Any]]
    expected: Expected = field(default_factory=set)
    used_images: int = 0
    used_annotations: int = 0

    @staticmethod
    def read(root: Path, name: str) -> "Split":
        file = root / f"annotations/instances_{name}2017.json"
        return Split(name, file, root / f"{name}2017", json.loads(file.read_text()))

    def write(self) -> None:
        self.annotation_file.write_text(json.dumps(self.document))

    def expect(self, kind: Kind, where: str) -> None:
        self.expected.add((self.name, kind, where))

    def file(self, kind: Kind, spoil: Callable[[Path], None]) -> None:
        """Damage the next picture's file."""
        path = self.folder / self.next_image()["file_name"]
        spoil(path)
        self.expect(kind, os.path.abspath(path))

    def next_image(self) -> Entry:
        """Return the entry of an image that has no planted defect yet."""
        self.used_images += 1
        entry: Entry = self.document["images"][self.used_images - 1]
        return entry

    def edit_image(self, kind: Kind, **values: Any) -> None:
        """Append a copy of the next image and its file, with a new id and then these values."""
        entry = self.copy_image() | values
        place = len(self.document["images"])
        self.document["images"].append(entry)
        self.expect(kind, entry_name("images", place, json.dumps(entry["id"])))

    def copy_image(self) -> Entry:
        entry = copy.deepcopy(self.next_image())
        number = len(self.document["images"])
        source = self.folder / entry["file_name"]
        entry |= {"id": 1_000_000 + number, "file_name": f"copy_{number}{source.suffix}"}
        # A JPEG may have trailing bytes: they make each file unique.
        (self.folder / entry["file_name"]).write_bytes(source.read_bytes() + number.to_bytes(2, "big"))
        return entry

    def annotate(self, *kinds: Kind, without: str = "", **values: Any) -> Entry:
        """Append an annotation of the last image that is sound apart from these values."""
        image = self.document["images"][-1]
        place = len(self.document["annotations"])
        entry = {
            "id": 5_000_000 + place,
            "image_id": image["id"],
            "category_id": self.document["categories"][0]["id"],
            "bbox": [1 + place / 1000, 1, image["width"] / 2, image["height"] / 2],
        } | values
        entry.pop(without, None)
        self.document["annotations"].append(entry)
        for kind in kinds:
            self.expect(kind, entry_name("annotations", place, json.dumps(entry["id"])))
        return entry


def sound_set(root: Path) -> Path:
    """Write 45 small JPEG files with boxes for training and 8 for evaluation. Return the folder."""
    rng = np.random.default_rng(3)
    for split, images in (("train", 45), ("val", 8)):
        data = CocoFolder(root / split)
        for number in range(images):
            width, height = (int(side) for side in rng.integers(60, 120, 2))
            boxes = [(5, 5, width / 2, 20), (2, 2, 9, 9), (3, 9, 30, 9)]
            pixels = noise(rng, width, height)
            if number == images - 1:  # uniform pictures look alike but are sound
                pixels[:] = 128
            data.add(1 + number, pixels, boxes, f"{1 + number}.jpg")
        data.write()
        (root / "annotations").mkdir(exist_ok=True)
        data.annotation_file.rename(root / f"annotations/instances_{split}2017.json")
        data.image_folder.rename(root / f"{split}2017")
        data.folder.rmdir()
    return root


def plant_all(root: Path) -> Expected:
    """Plant every defect in the data set; return the errors and warnings that the doctor must find.

    The set must be sound and have at least 35 JPEG files in train2017 and 5 in val2017.
    """
    train, val = Split.read(root, "train"), Split.read(root, "val")
    plant_files(train)
    plant_images(train)
    plant_annotations(train)
    plant_ids(train)
    original = train.next_image()
    with Image.open(train.folder / original["file_name"]) as picture:
        picture.save(val.folder / "alike.jpg", quality=90)
    val.document["images"].append(original | {"id": 2_000_000, "file_name": "alike.jpg"})
    leaked = train.copy_image()
    (train.folder / leaked["file_name"]).unlink()
    shutil.copy(
        train.folder / train.document["images"][train.used_images - 1]["file_name"], val.folder / "leaked.jpg"
    )
    val.document["images"].append(leaked | {"file_name": "leaked.jpg"})
    leaks = {
        ("both", Kind.picture_alike, os.path.abspath(val.folder / "alike.jpg")),
        ("both", Kind.picture_in_both, os.path.abspath(val.folder / "leaked.jpg")),
    }
    val.file(Kind.undecodable, lambda path: cut(path, -1))
    val.annotate(Kind.box_clipped, Kind.truth_lost, bbox=[-20, 5, 40, 30])
    between = plant_categories(train, val)
    for split in (train, val):
        split.write()
    train.expect(Kind.truth_unscored, str(train.annotation_file))
    return train.expected | val.expected | between | leaks


def plant_files(split: Split) -> None:
    split.file(Kind.missing, Path.unlink)
    split.file(Kind.missing, dangle)
    split.file(Kind.empty, lambda path: path.write_bytes(b"") and None)
    split.file(Kind.undecodable, lambda path: cut(path, path.stat().st_size // 2))
    split.file(Kind.undecodable, lambda path: cut(path, -2))
    split.file(Kind.not_an_image, lambda path: path.write_text("<html>404</html>") and None)
    split.file(Kind.unsupported_format, lambda path: save_as(path, "GIF"))
    split.file(Kind.exif_rotation, rotate)
    split.file(Kind.exif_rotation, lambda path: rotate(path, "PNG"))
    for picture_format in ("PNG", "WEBP"):
        split.file(Kind.animated, lambda path, kind=picture_format: save_moving(path, kind))
    split.file(Kind.exif_unreadable, damage_exif)
    split.file(Kind.too_many_pixels, claim_absurd_size)
    split.file(Kind.unreadable, replace_by_folder)
    split.file(Kind.unreadable, lambda path: path.unlink() or os.mkfifo(path))
    split.file(Kind.link_leaves_folder, link_outside)
    entry = split.next_image()
    split.expect(Kind.size_unlike, os.path.abspath(split.folder / entry["file_name"]))
    entry["width"] += 1


def plant_images(split: Split) -> None:
    split.edit_image(Kind.path_leaves_folder, file_name="../outside.jpg")
    same_file = {key: split.document["images"][-3][key] for key in ("file_name", "width", "height")}
    split.edit_image(Kind.file_name_duplicate, **same_file)
    entry = split.copy_image()
    copy = split.folder / entry["file_name"]
    copy.write_bytes(
        (split.folder / split.document["images"][split.used_images - 1]["file_name"]).read_bytes()
    )
    split.document["images"].append(entry)
    split.expect(Kind.picture_twice, os.path.abspath(copy))
    split.edit_image(Kind.image_size, width=0)
    entry = split.copy_image()
    del entry["width"]
    split.expect(Kind.field_missing, entry_name("images", len(split.document["images"]), entry["id"]))
    split.document["images"] += [entry, None]
    split.expect(Kind.no_object, f"images[{len(split.document['images']) - 1}]")


def plant_ids(split: Split) -> None:
    split.edit_image(Kind.id_duplicate, id=split.document["images"][0]["id"])
    split.edit_image(Kind.id_type, id="17")
    split.edit_image(Kind.id_range, id=-3)
    split.edit_image(Kind.id_type, id=2**64 + 7)


def plant_annotations(split: Split) -> None:
    split.document["images"].append(split.copy_image())
    width = split.document["images"][-1]["width"]
    split.annotate(Kind.box_outside, bbox=[width + 5, 5, 10, 10])
    split.annotate(Kind.box_clipped, bbox=[width - 10, 5, 10.01, 10])
    split.annotate(Kind.box_inverted, bbox=[20, 20, -10, 10])
    split.annotate(Kind.box_empty, bbox=[20, 20, 0, 10])
    split.annotate(Kind.box_small, bbox=[20, 20, 0.5, 10])
    split.annotate(Kind.box_small, bbox=[-9.5, 5, 10, 10])
    split.annotate(Kind.box_numbers, bbox=[1, 1, 5, 10**400])
    split.annotate(Kind.box_numbers, bbox=[1, 2, 3])
    split.annotate(Kind.field_missing, without="bbox")
    split.annotate(Kind.field_type, iscrowd="yes")
    split.annotate(Kind.unknown_image, image_id=987_654)
    split.annotate(Kind.unknown_category, category_id=987_654)
    split.annotate(Kind.id_type, image_id="1")
    split.annotate(Kind.annotation_id_duplicate, id=split.annotate()["id"])
    split.annotate(Kind.box_twice, bbox=split.annotate()["bbox"])
    split.document["annotations"].append(7)
    split.expect(Kind.no_object, f"annotations[{len(split.document['annotations']) - 1}]")


def plant_categories(train: Split, val: Split) -> Expected:
    """Make the categories of the two splits differ, and duplicate a name in train."""
    for split in (train, val):
        split.document["categories"] += [
            {"id": 801, "name": f"renamed in {split.name}"},
            {"id": 802 + (split is val), "name": "renumbered"},
            {"id": 810 + (split is val), "name": f"only in {split.name}"},
        ]
    place = len(train.document["categories"])
    first = train.document["categories"][0]["name"]
    train.document["categories"].append({"id": 820, "name": first})
    train.expect(Kind.category_name_duplicate, entry_name("categories", place, 820))
    return {
        ("both", Kind.category_renamed, "category 'renamed in train'"),
        ("both", Kind.category_renumbered, "category 'renumbered'"),
        ("both", Kind.category_missing, "category 'only in train'"),
        ("both", Kind.category_missing, "category 'only in val'"),
    }


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


def link_outside(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / f"outside_{path.name}"))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def save_as(path: Path, picture_format: str) -> None:
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, picture_format)


def save_moving(path: Path, picture_format: str) -> None:
    with Image.open(path) as picture:
        picture.load()
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(path, picture_format, save_all=True, append_images=[other])


def rotate(path: Path, picture_format: str = "JPEG") -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as picture:
        picture.load()
    picture.save(path, picture_format, exif=exif)


def damage_exif(path: Path) -> None:
    rotate(path, "WEBP")
    text = path.read_bytes()
    assert text.count(b"MM\0*") == 1
    path.write_bytes(text.replace(b"MM\0*", b"MM!*"))


def claim_absurd_size(path: Path) -> None:
    """Write a PNG whose header claims 10 gigapixels."""
    save_as(path, "PNG")
    text = bytearray(path.read_bytes())
    text[16:24] = (100_000).to_bytes(4, "big") * 2
    path.write_bytes(text)
