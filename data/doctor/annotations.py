"""The entries of `annotations`: every one that is wrong, and the boxes of the others as arrays."""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.clipping import inside_px
from data.doctor.document import ABSENT, RawAnnotation
from data.doctor.entries import ListedImage
from data.doctor.findings import Finding, Kind
from data.doctor.ids import MAX_32_BITS, MAX_64_BITS, check_id, check_twice, comparable, entry_name


@dataclass(frozen=True, eq=False)
class ReadBoxes:
    """Boxes of finite numbers in a listed image of known size and a listed category, a row each.

    places: in the list of annotations. images, categories: places in image_ids and category_ids, which are as
    they stand in the file; of an id that stands there twice, the first. ltwh_px: B×4 float64. sizes_px: B×2,
    of the image.
    """

    image_ids: Sequence[object]
    category_ids: Sequence[object]

    places: NDArray[np.int64]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    ltwh_px: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    sizes_px: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> "ReadBoxes":
        """Return the rows that are kept, given by a mask or by their places in a new order."""
        return ReadBoxes(
            self.image_ids,
            self.category_ids,
            self.places[kept],
            self.images[kept],
            self.categories[kept],
            self.ltwh_px[kept],
            self.crowd[kept],
            self.sizes_px[kept],
        )

    @property
    def inside_px(self) -> NDArray[np.float64]:
        """What of each box lies inside its image: B×2, width and height, 0 or less where nothing does."""
        return inside_px(self.ltwh_px, self.sizes_px)


def check_annotations(
    entries: dict[int, RawAnnotation],
    images: Sequence[ListedImage],
    category_ids: Sequence[object],
    findings: list[Finding],
) -> ReadBoxes:
    """Report what is wrong with annotations but for the boxes' geometry; return the boxes that are left."""
    image_of = {image.id: place for place, image in reversed([*enumerate(images)]) if comparable(image.id)}
    category_of = {id_: place for place, id_ in enumerate(category_ids)}
    first_id: dict[object, str] = {}
    rows = array("d")
    for place, entry in entries.items():
        where = entry_name("annotations", place, entry.id)
        _check_fields(entry, where, first_id, findings)
        image = _refer(entry.image_id, "image_id", image_of, where, findings)
        category = _refer(entry.category_id, "category_id", category_of, where, findings)
        box = _box(entry.bbox, where, findings)
        size_px = None if image is None else images[image].size_px
        if image is not None and category is not None and box is not None and size_px is not None:
            rows.extend((place, image, category, *box, entry.iscrowd not in (ABSENT, 0), *size_px))
    table = np.frombuffer(rows).reshape(-1, 10)
    return ReadBoxes(
        image_ids=[image.id for image in images],
        category_ids=category_ids,
        places=table[:, 0].astype(np.int64),
        images=table[:, 1].astype(np.int64),
        categories=table[:, 2].astype(np.int64),
        ltwh_px=table[:, 3:7],
        crowd=table[:, 7].astype(np.bool_),
        sizes_px=table[:, 8:],
    )


def check_geometry(
    boxes: ReadBoxes, entries: dict[int, RawAnnotation], min_box_px: float, findings: list[Finding]
) -> NDArray[np.bool_]:
    """Report boxes that training drops or clips; return which are used."""
    size, inside = boxes.ltwh_px[:, 2:].min(axis=1), boxes.inside_px.min(axis=1)
    left = np.ones(len(size), dtype=np.bool_)
    for kind, bad in (
        (Kind.box_inverted, size < 0),
        (Kind.box_empty, size == 0),
        (Kind.box_outside, inside <= 0),
        (Kind.box_small, inside < min_box_px),
    ):
        findings.extend(_describe(kind, left & bad, boxes, entries))
        left &= ~bad
    clipped = left & (boxes.inside_px < boxes.ltwh_px[:, 2:]).any(axis=1)
    findings.extend(_describe(Kind.box_clipped, clipped, boxes, entries))
    return left


def _describe(
    kind: Kind, bad: NDArray[np.bool_], boxes: ReadBoxes, entries: dict[int, RawAnnotation]
) -> Iterator[Finding]:
    for row in np.flatnonzero(bad):
        place = int(boxes.places[row])
        entry = entries[place]
        width, height = boxes.sizes_px[row]
        yield Finding(
            kind,
            entry_name("annotations", place, entry.id),
            f"bbox {entry.bbox} in image {entry.image_id!r} of {width:.0f}×{height:.0f} pixels",
        )


def _check_fields(
    entry: RawAnnotation, where: str, first_id: dict[object, str], findings: list[Finding]
) -> None:
    if entry.id is not ABSENT and entry.id is not None:
        _check_own_id(entry.id, where, findings)
        if twice := check_twice(entry.id, where, first_id, Kind.annotation_id_duplicate):
            findings.append(twice)
    if entry.iscrowd is not ABSENT and not isinstance(entry.iscrowd, int):
        findings.append(Finding(Kind.field_type, where, f"iscrowd {entry.iscrowd!r:.60}, not 0 or 1"))
    if entry.area is not ABSENT and entry.area is not None and not _is_number(entry.area):
        findings.append(Finding(Kind.field_type, where, f"area {entry.area!r:.60}, not a number"))


def _check_own_id(value: object, where: str, findings: list[Finding]) -> None:
    """Take a large id for what it is: COCO's own crowd annotations have them, and nothing refers to it."""
    if type(value) is int and MAX_32_BITS < value <= MAX_64_BITS:
        findings.append(Finding(Kind.annotation_id_large, where, f"id {value}"))
    else:
        check_id(value, "id", where, findings)


def _refer(
    value: object, field: str, known: dict[object, int], where: str, findings: list[Finding]
) -> int | None:
    """Return the place of what an annotation refers to."""
    check_id(value, field, where, findings)
    place = known.get(value) if comparable(value) else None
    if place is None and comparable(value):
        kind = Kind.unknown_image if field == "image_id" else Kind.unknown_category
        findings.append(Finding(kind, where, f"{field} {value!r:.60}"))
    return place


def _box(value: object, where: str, findings: list[Finding]) -> list[float] | None:
    if value is ABSENT:
        findings.append(Finding(Kind.field_missing, where, "no bbox"))
    elif not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
        findings.append(Finding(Kind.box_length, where, f"bbox {value!r:.80}"))
    elif not all(map(_is_finite, value)):
        findings.append(Finding(Kind.box_not_finite, where, f"bbox {value!r:.80}"))
    else:
        return value
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
