"""What must hold of an annotation file before anything is trained on it.

Each check returns what it read as arrays, or raises UserError naming the first bad entry and the mend.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.coco_json import Annotation, Category, Image, Source
from ssd.categories import Categories

LARGEST_SIDE_PX = 2**20
"""Relative to the image, float32 tells tenths of a pixel apart up to here: no box becomes a line."""


@dataclass(frozen=True)
class Boxes:
    """A row a box: its image's place in the file B, label B, ltwh_px B×4 float64, crowd mark B."""

    images: NDArray[np.int64]
    labels: NDArray[np.int32]
    ltwh_px: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "Boxes":
        """Return the rows that are kept, given by a mask or by their places in a new order."""
        return Boxes(self.images[kept], self.labels[kept], self.ltwh_px[kept], self.crowd[kept])


def check_categories(entries: Sequence[Category], source: Source) -> Categories:
    """Return the categories in file order: at least one, no id twice."""
    if not entries:
        raise source.error("`categories` is missing or empty; add one entry for each class to the file")
    ids = np.array([entry.id for entry in entries], dtype=np.int64)
    _refuse_duplicates(ids, "categories", source)
    return Categories(tuple(ids.tolist()), tuple(entry.name for entry in entries))


def check_images(entries: Sequence[Image], source: Source) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids N and sizes_px N×2 (width, height): no id twice, sizes positive, files inside the folder."""
    if not entries:
        raise source.error("`images` is empty; name another annotation file")
    ids = np.array([entry.id for entry in entries], dtype=np.int64)
    sizes_px = np.array([(entry.width, entry.height) for entry in entries], dtype=np.int64)
    _refuse_duplicates(ids, "images", source)
    for place in _first((sizes_px.min(axis=1) < 1) | (sizes_px.max(axis=1) > LARGEST_SIDE_PX)):
        width, height = sizes_px[place]
        raise source.error(
            f"images[{place}] (id {ids[place]}): width {width} and height {height} must be 1 or more and at "
            f"most {LARGEST_SIDE_PX}; write the picture's size into the file"
        )
    for place in _first(np.array([leaves_folder(entry.file_name) for entry in entries])):
        raise source.error(
            f"images[{place}] (id {ids[place]}): file_name {entries[place].file_name!r} is no relative path "
            f"inside {source.images_key}={source.image_folder}; make it relative to that folder"
        )
    for place in _first(np.array(["\0" in entry.file_name for entry in entries])):
        raise source.error(
            f"images[{place}] (id {ids[place]}): file_name {entries[place].file_name!r} holds a NUL "
            "character, which no file's name can; correct it"
        )
    return ids, sizes_px


def check_annotations(
    entries: Sequence[Annotation], image_ids: NDArray[np.int64], categories: Categories, source: Source
) -> Boxes:
    """Return every box with its image's place and its label; the file must hold both image and category."""
    images = _places(np.fromiter((entry.image_id for entry in entries), np.int64), image_ids)
    labels = _places(np.fromiter((entry.category_id for entry in entries), np.int64), categories.ids) + 1
    for place in _first(images < 0):
        raise source.error(
            f"annotations[{place}] (id {entries[place].id}): no entry of `images` has its image_id "
            f"{entries[place].image_id}; correct it, add the image or remove the annotation"
        )
    for place in _first(labels < 1):
        raise source.error(
            f"annotations[{place}] (id {entries[place].id}): no entry of `categories` has its category_id "
            f"{entries[place].category_id}; correct it, add the category or remove the annotation"
        )
    boxes = (entry.bbox for entry in entries)
    return Boxes(
        images=images,
        labels=labels.astype(np.int32),
        ltwh_px=np.fromiter(itertools.chain.from_iterable(boxes), np.float64).reshape(-1, 4),
        crowd=np.fromiter((entry.iscrowd for entry in entries), np.bool_),
    )


def _refuse_duplicates(ids: NDArray[np.int64], section: str, source: Source) -> None:
    order = np.argsort(ids, kind="stable")
    for place in _first(np.diff(ids[order]) == 0):
        first, second = order[place : place + 2]
        raise source.error(
            f"{section}[{second}] has the id {ids[second]} of {section}[{first}]; give each entry its own id"
        )


def _first(bad: NDArray[np.bool_]) -> list[int]:
    """Return the place of the first True, as a list of none or one."""
    first: list[int] = np.flatnonzero(bad)[:1].tolist()
    return first


def leaves_folder(file_name: str) -> bool:
    """Tell whether an image's file_name is anything but a path inside the image folder."""
    return not file_name or file_name.startswith("/") or ".." in file_name.split("/")


def _places(ids: NDArray[np.int64], known_ids: NDArray[np.int64] | tuple[int, ...]) -> NDArray[np.int64]:
    """Return where each id stands among the known ones, -1 where it does not."""
    known = np.asarray(known_ids, dtype=np.int64)
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    return np.where(known[places] == ids, places, -1)
