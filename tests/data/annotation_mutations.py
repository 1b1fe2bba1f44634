"""Ways in which annotation files go wrong, for hypothesis to combine, and a literal reading of sound ones."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

VALID: dict[str, Any] = {
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

Place = tuple[Any, Any]

DEEP = "@deep@"
"""Stands for a nest of brackets in a document that is yet to be written."""

# What people's converters write, and what nobody expects.
ODD_TEXTS = ["", ".", "..", "../a.png", "/etc/passwd", "a\0.png", "\ud800", "7", "NaN", "a" * 5000, DEEP]
ODD_NUMBERS = [0, -1, 7, 30, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, -0.0, 0.5, 1e308]
ODD_NUMBERS += [-1e308, 1e-320, float("nan"), float("inf"), float("-inf")]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "bbox", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
boxes = st.lists(st.one_of(st.floats(-300, 300), st.sampled_from(ODD_NUMBERS)), min_size=3, max_size=5)


@st.composite
def mutated_texts(draw: st.DrawFn) -> bytes:
    """Draw the text of a valid document of which one to four things were changed."""
    document = deepcopy(VALID)
    for _ in range(draw(st.integers(1, 4))):
        if places := list(_places(document)):
            draw(st.sampled_from([_alter, _alter, _replace, _give_box, _delete, _repeat, _swap]))(
                draw, document, places
            )
    depth = draw(st.sampled_from([3, 300, 200_000]))
    text = json.dumps(document).replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    return text.encode()


@st.composite
def damaged_texts(draw: st.DrawFn) -> bytes:
    """Draw a valid or mutated text of which bytes were cut off, replaced, put in or taken out."""
    text = draw(st.one_of(st.just(json.dumps(VALID, ensure_ascii=False).encode()), mutated_texts()))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.one_of(st.just(len(text)), st.integers(start, start + 3)))
        text = text[:start] + draw(st.binary(max_size=3)) + text[end:]
    return text


def literal_boxes(text: bytes) -> list[tuple[int, int, list[float]]]:
    """Read a sound annotation file slowly: (image id, label, ltrb relative to the image) of each usable box.

    Usable for training as by default: one pixel wide and high, in the file and in the image.
    """
    # msgspec passes over what it need not know, bytes that are no UTF-8 and control characters among it.
    document = json.loads(text.decode(errors="replace"), strict=False)
    label_of = {each["id"]: label for label, each in enumerate(document.get("categories", []), start=1)}
    found = []
    for image in document["images"]:
        for each in document.get("annotations", []):
            if each["image_id"] != image["id"]:
                continue
            x, y, w, h = map(float, each["bbox"])
            width, height = image["width"], image["height"]
            over_x, over_y = max(-x, 0) + max(x + w - width, 0), max(-y, 0) + max(y + h - height, 0)
            if min(w, h, w - over_x, h - over_y) >= 1:
                left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
                ltrb = [left / width, top / height, right / width, bottom / height]
                found.append((image["id"], label_of[each["category_id"]], ltrb))
    return found


def _alter(draw: st.DrawFn, _: Any, places: list[Place]) -> None:
    """Keep the type: only what a value means goes wrong."""
    alike = [place for place in places if isinstance(place[0][place[1]], str | int | float)]
    for holder, key in alike and [draw(st.sampled_from(alike))]:
        holder[key] = draw(st.sampled_from(ODD_TEXTS if isinstance(holder[key], str) else ODD_NUMBERS))


def _replace(draw: st.DrawFn, _: Any, places: list[Place]) -> None:
    holder, key = draw(st.sampled_from(places))
    holder[key] = draw(values)


def _give_box(draw: st.DrawFn, document: Any, _: list[Place]) -> None:
    entries = document.get("annotations")
    for entry in entries[:1] if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            entry["bbox"] = draw(boxes)


def _delete(draw: st.DrawFn, _: Any, places: list[Place]) -> None:
    holder, key = draw(st.sampled_from(places))
    del holder[key]


def _repeat(draw: st.DrawFn, _: Any, places: list[Place]) -> None:
    holder, key = draw(st.sampled_from(places))
    if isinstance(holder, list):
        holder.append(deepcopy(holder[key]))


def _swap(draw: st.DrawFn, _: Any, places: list[Place]) -> None:
    (holder, key), (other, other_key) = draw(st.sampled_from(places)), draw(st.sampled_from(places))
    holder[key], other[other_key] = deepcopy(other[other_key]), deepcopy(holder[key])


def _places(value: Any) -> Iterator[Place]:
    """Yield (container, key) of everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])
