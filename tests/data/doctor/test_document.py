"""Any annotation file is read as far as it goes, and what is wrong with it is said, never raised."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.doctor.annotations import check_annotations, check_geometry
from data.doctor.document import Entries, read_entries
from data.doctor.entries import check_categories, check_images
from data.doctor.findings import Kind, Severity
from data.index import Selection, read_index
from ssd.errors import UserError

pytestmark = pytest.mark.unit


def entries_of(path: Path, text: bytes) -> Entries:
    path.write_bytes(text)
    return read_entries(path)


def kinds(entries: Entries) -> list[Kind]:
    return [finding.kind for finding in entries.findings]


@pytest.mark.parametrize(
    ("text", "expected", "detail"),
    [
        (b"", [Kind.no_json], "has 0 bytes"),
        (b'{"images": [{"id": 1', [Kind.no_json], r"line 1 column 21"),
        (b'{"images": [], }', [Kind.no_json], "line 1 column 16"),
        (b"\xff\xd8\xff\xe0 a photograph", [Kind.no_json], "utf-8"),
        (b"[" * 100_000, [Kind.no_json], "recursion"),
        (b"[1, 2]", [Kind.no_list], r"holds \[1, 2\], not an object"),
        (b"null", [Kind.no_list], "holds None"),
        (b"{}", [Kind.no_list] * 3, "the file has none"),
        (b'{"images": {"1": 2}, "annotations": [], "categories": []}', [Kind.no_list], "not a list"),
        (b'{"images": [3], "annotations": [], "categories": []}', [Kind.no_object], "it is 3"),
    ],
)
def test_file_that_is_no_annotation_file_is_reported(
    tmp_path: Path, text: bytes, expected: list[Kind], detail: str
) -> None:
    entries = entries_of(tmp_path / "file.json", text)
    assert kinds(entries) == expected
    assert re.search(detail, entries.findings[0].detail)


@pytest.mark.parametrize("name", ["none.json", "."])
def test_file_that_cannot_be_read_is_reported(tmp_path: Path, name: str) -> None:
    assert kinds(read_entries(tmp_path / name)) == [Kind.unreadable_file]


def test_entries_are_read_on_after_nan(tmp_path: Path) -> None:
    text = b'{"images": [{"id": 1}, {"id": NaN}, 7, {"id": 4}], "annotations": [], "categories": []}'
    entries = entries_of(tmp_path / "file.json", text)
    assert kinds(entries) == [Kind.no_standard_json, Kind.no_object]
    assert [*entries.images] == [0, 1, 3]
    assert entries.images[3].id == 4


SOUND = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 90, "height": 60} for n in range(4)],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": n, "image_id": n % 4, "category_id": (3, 5)[n % 2], "bbox": [n, 2, 30, 40], "iscrowd": 0}
        for n in range(8)
    ],
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-9, 99) | st.floats(), max_size=5),
    st.just({}),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An annotation file with values replaced or removed, or bytes of it changed."""
    document = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from(sorted(document)))
        entries = document[section]
        if not isinstance(entries, list) or not entries:
            continue
        place = draw(st.integers(0, len(entries) - 1))
        what = draw(st.sampled_from(["field", "field", "field", "remove", "entry", "section"]))
        if what == "section":
            document[section] = draw(VALUES)
        elif what == "entry" or not isinstance(entries[place], dict) or not entries[place]:
            entries[place] = draw(VALUES)
        else:
            key = draw(st.sampled_from(sorted(entries[place])))
            if what == "remove":
                del entries[place][key]
            else:
                entries[place][key] = draw(VALUES)
    text = bytearray(json.dumps(document).encode())
    for place in draw(st.lists(st.integers(0, len(text) - 1), max_size=1)):
        text[place] = draw(st.integers(0, 255))
    return bytes(text)


@settings(
    derandomize=True,
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(text=damaged())
def test_what_training_refuses_is_an_error_and_nothing_is_raised(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "file.json"
    entries = entries_of(file, text)
    findings = entries.findings
    names = check_categories(entries.categories, findings)
    images = check_images(entries.images, findings)
    boxes = check_annotations(entries.annotations, images, [*names], findings)
    used = check_geometry(boxes, entries.annotations, 1.0, findings)
    errors = [finding for finding in findings if finding.kind.value.severity is Severity.error]
    try:
        index = read_index(file, tmp_path, Selection(images_without_boxes=True))
    except UserError:
        # Without an image or a category nothing in the file is wrong but that.
        assert errors or not images or not names
    else:
        assert len(index.labels) == used.sum()
