"""Whatever an annotation file holds: a working index that equals a literal reading, or an error of ours."""

import json
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.index import CocoIndex, read_index
from ssd.annotations import examine_annotations, read_ground_truth
from ssd.errors import UserError
from tests.data.coco_folder import DOCUMENT

pytestmark = pytest.mark.unit

# The same examples in every run: the suite does not fail by chance.
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],  # so it is on a machine that does much else
)

DEEP = "@deep@"
"""Stands for a nest of brackets in a document that is yet to be written."""

# What people's converters write, and what nobody expects.
ODD_TEXTS = ["", ".", "..", "../a.png", "/etc/passwd", "a\0.png", "\ud800", "7", "NaN", "a" * 5000, DEEP]
ODD_NUMBERS = [0, -1, 7, 30, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, -0.0, 0.5, 1e308]
ODD_NUMBERS += [-1e308, 1e-320, float("nan"), float("inf"), float("-inf")]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
scalars |= st.sampled_from(ODD_TEXTS) | st.sampled_from(ODD_NUMBERS)
values = scalars | st.lists(scalars, max_size=5) | st.dictionaries(st.sampled_from(["id", "x"]), scalars)
boxes = st.lists(st.floats(-300, 300) | st.sampled_from(ODD_NUMBERS), min_size=3, max_size=5)


@st.composite
def mutated_texts(draw: st.DrawFn) -> bytes:
    """Draw the text of a sound document of which one to four things were changed."""
    document = deepcopy(DOCUMENT)
    for _ in range(draw(st.integers(1, 4))):
        holder, key = draw(st.sampled_from(list(places_in(document))))
        match draw(st.sampled_from(["alter", "alter", "alter", "replace", "box", "delete", "repeat"])):
            case "alter" if isinstance(holder[key], str):  # only what it means goes wrong
                holder[key] = draw(st.sampled_from(ODD_TEXTS))
            case "alter" if isinstance(holder[key], int | float):
                holder[key] = draw(st.sampled_from(ODD_NUMBERS))
            case "replace":
                holder[key] = draw(values)
            case "box" if isinstance(holder, dict):
                holder["bbox"] = draw(boxes)
            case "delete" if len(document) > 1:
                del holder[key]
            case "repeat" if isinstance(holder, list):
                holder.append(deepcopy(holder[key]))
    depth = draw(st.sampled_from([3, 300, 200_000]))
    return json.dumps(document).replace(f'"{DEEP}"', "[" * depth + "]" * depth).encode()


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of everything inside."""
    keys = [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from places_in(value[key])


def literal_boxes(text: bytes) -> list[tuple[int, int, list[float]]]:
    """Read a sound annotation file slowly: (image id, label, ltrb relative to the image) of each usable box.

    Usable for training as by default: one pixel wide and high, in the file and in the image.
    """
    document = json.loads(text)
    label_of = {each["id"]: label for label, each in enumerate(document["categories"], start=1)}
    found = []
    for image in document["images"]:
        for each in document["annotations"]:
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(mutated_texts())
@example(json.dumps(DOCUMENT).encode())
@example(json.dumps(DOCUMENT).replace("b.png", r"b\u0000.png").encode())
def test_mutated_document_is_read_as_it_stands_or_refused(folder: Path, text: bytes) -> None:
    file = folder / "annotations.json"
    file.write_bytes(text)
    with warnings.catch_warnings(action="error"):
        examine_annotations(file)
        try:
            index: CocoIndex | str = read_index(file, folder)
            read_ground_truth(file)  # what training reads can be scored
        except UserError as error:
            index = str(error)
    if isinstance(index, str):
        assert index.startswith("data.train_annotations=")
        assert len(index.encode()) < 1000
        return
    assert all("\0" not in index.path(image) for image in range(len(index)))
    assert (index.box_starts[0], index.box_starts[-1]) == (0, len(index.labels))
    assert (index.boxes_ltrb[:, :2] < index.boxes_ltrb[:, 2:]).all()
    assert ((index.boxes_ltrb >= 0) & (index.boxes_ltrb <= 1)).all()
    expected = literal_boxes(text)
    image_ids = np.repeat(index.image_ids, np.diff(index.box_starts)).tolist()
    assert list(zip(image_ids, index.labels.tolist(), strict=True)) == [each[:2] for each in expected]
    expected_ltrb = np.reshape([each[2] for each in expected], (-1, 4))
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(index.boxes_ltrb, expected_ltrb, rtol=1e-6, atol=tiny)
