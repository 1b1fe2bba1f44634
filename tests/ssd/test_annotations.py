"""Bad annotation files: training reports the first error, the examination reports all of them."""

import codecs
import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from ssd.annotations import (
    FIXES,
    NO_ID,
    examine_annotations,
    read_annotations,
    read_ground_truth,
)
from ssd.errors import UserError
from tests.data.coco_folder import DOCUMENT

pytestmark = pytest.mark.unit

KEY = "data.train_annotations"
NAN = float("nan")

Document = dict[str, Any]
Edit = Callable[[Document], object]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "annotations.json"


def write(file: Path, edit: Edit) -> None:
    document = deepcopy(DOCUMENT)
    edit(document)
    file.write_text(json.dumps(document))


def image(**values: object) -> Edit:
    """Return an edit that sets these values in the second image."""
    return lambda document: document["images"][1].update(values)


def box(**values: object) -> Edit:
    """Return an edit that sets these values in the second annotation."""
    return lambda document: document["annotations"][1].update(values)


def without(section: str, field: str) -> Edit:
    return lambda document: document[section][1].pop(field)


def every(*sections: str, **values: object) -> Edit:
    """Return an edit that sets these values in each entry of these lists."""
    return lambda document: [entry.update(values) for section in sections for entry in document[section]]


def both(*edits: Edit) -> Edit:
    return lambda document: [edit(document) for edit in edits]


# Edit, training's message, and the kinds of all errors that the examination finds.
BAD: dict[str, tuple[Edit, str, list[str]]] = {
    "no categories": (lambda d: d["categories"].clear(), "categories: the list is empty",
        ["no_list", *["unknown_category"] * 3]),
    "annotations missing": (lambda d: d.pop("annotations"), "annotations: the file has none", ["no_list"]),
    "no images": (lambda d: d["images"].clear(), "images: the list is empty", ["no_list"]),
    "images by id": (lambda d: d.update(images={"1": 2}), r'images: it is {"1": 2}, not a list', ["no_list"]),
    "image null": (lambda d: d["images"].append(None), r"images\[3\]: it is null, not", ["no_object"]),
    "category twice": (lambda d: d["categories"].append({"id": 7, "name": "cup"}),
        r"categories\[2\] \(id 7\): categories\[0\] has the id 7 too", ["id_duplicate"]),
    "image twice": (image(id=30), r"images\[1\] .*: images\[0\] has the id 30 too", ["id_duplicate"]),
    "name missing": (without("categories", "name"), r"categories\[1\] .*: no name", ["field_missing"]),
    "unknown category": (box(category_id=99),
        r"annotations\[1\] \(id 2\): no entry of `categories` has its category_id 99", ["unknown_category"]),
    "unknown image": (box(image_id=5),
        r"annotations\[1\] \(id 2\): no entry of `images` has its image_id 5", ["unknown_image"]),
    "width 0": (image(width=0), r"images\[1\] \(id 10\): width 0 is not a whole", ["image_size"]),
    "height absurd": (image(height=2**20 + 1), "height 1048577 is not .* to 1048576", ["image_size"]),
    "sizes that are floats": (every("images", width=200.0, height=100.0),
        r"images\[0\] \(id 30\): width 200\.0 is not a whole number from 1", ["image_size"] * 6),
    "path absolute": (image(file_name="/etc/c.png"),
        r'images\[1\] \(id 10\): file_name "/etc/c.png" is no path inside', ["path_leaves_folder"]),
    "path going up": (image(file_name="sub/../../c.png"), '"sub/../../c.png" is no path inside',
        ["path_leaves_folder"]),
    "path with a NUL": (image(file_name="c\0.png"), r'"c\\u0000.png" is no path', ["path_leaves_folder"]),
    "path of half a surrogate pair": (image(file_name="\ud83d.png"), r"byte \d+\): .*ud83d", ["no_json"]),
    "bbox of 3": (box(bbox=[1, 2, 3]), r"annotations\[1\] \(id 2\): bbox \[1, 2, 3\] is not",
        ["box_numbers"]),
    "polygons without boxes": (every("annotations", bbox=[]), r"bbox \[\] is not 4", ["box_numbers"] * 3),
    "bbox missing": (without("annotations", "bbox"), r"annotations\[1\] .*: no bbox", ["field_missing"]),
    "bbox with NaN": (box(bbox=[1, 2, NAN, 4]), r"byte \d+\): .*NaN.*; .*without NaN", ["no_json"]),
    "bbox beyond floats": (box(bbox=[1, 2, 10**400, 4]), "is not 4 finite numbers", ["box_numbers"]),
    "area of text": (box(area="large"), 'area "large" is not a number', ["field_type"]),
    "id of text": (image(id="10"), r'images\[1\] \(id "10"\): id "10" is not a whole', ["id_type"]),
    "id missing": (without("images", "id"), r"images\[1\] \(id none\): no id", ["field_missing"]),
    "id too large": (image(id=2**63), "id 9223372036854775808 is not .* at most 64 bits", ["id_type"]),
    "ids that are floats": (every("images", "categories", id=7.0),
        r"images\[0\] \(id 7\.0\): id 7\.0 is not a whole number", [*["id_type"] * 5, *["unknown_image"] * 3,
        *["unknown_category"] * 3]),
    "two defects": (both(image(width="200"), box(bbox=7)), 'width "200"', ["image_size", "box_numbers"]),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message", "kinds"), BAD.values(), ids=BAD)
def test_bad_file_is_refused_and_examined(file: Path, edit: Edit, message: str, kinds: list[str]) -> None:
    write(file, edit)
    check_refused(file, message, kinds)


def check_refused(file: Path, message: str, kinds: list[str]) -> None:
    _, defects = examine_annotations(file)
    errors = [defect for defect in defects if defect.kind in FIXES]
    assert [error.kind for error in errors] == kinds
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(file, KEY)
    said = str(caught.value)
    assert said.startswith(f"{KEY}={file}: ")
    assert said.endswith(f"{errors[0].detail}; {FIXES[kinds[0]]}")
    assert "\n" not in said


WHOLE = json.dumps(DOCUMENT).encode()
TEXTS: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "truncated: .*download it again", "no_json"),
    "empty after a mark": (codecs.BOM_UTF8, "truncated", "no_json"),
    "cut short": (WHOLE[:37], "truncated", "no_json"),
    "photograph": (b"\xff\xd8\xff\xe0 a photograph", r"no JSON: .*\(byte 0\)", "no_json"),
    "comma after a mark": (codecs.BOM_UTF8 + b'{"images": ,', r"\(byte 11\): '{\"images\": ,'", "no_json"),
    "no UTF-8": (WHOLE.replace(b"b.png", b"\xff.png"), "is no path inside", "path_leaves_folder"),
    "UTF-16": (WHOLE.decode().encode("utf-16"), r"\(byte 0\): .*; write it as UTF-8", "no_json"),
    "deep brackets": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "no JSON: .*recursion", "no_json"),
    "list": (b"[1,\n2]", r"it is \[1, 2\], not an object with images, annotations and", "no_list"),
    "key twice": (
        WHOLE.replace(b'"width": 200', b'"width": "x", "width": 200'),
        r"images\[0\]: Expected `int`, got `str`",
        "field_type",
    ),
    "list twice": (WHOLE[:-1] + b', "images": 7' + WHOLE[-1:], "images: it is 7, not a list", "no_list"),
    "list twice, then sound": (b'{"images": 7, ' + WHOLE[1:], "Expected `array`, got `int`", "field_type"),
}


@pytest.mark.parametrize(("text", "message", "kind"), TEXTS.values(), ids=TEXTS)
def test_text_that_is_no_annotation_file_is_named(file: Path, text: bytes, message: str, kind: str) -> None:
    file.write_bytes(text)
    check_refused(file, message, [kind])


def test_file_that_cannot_be_read_is_named_by_its_override(file: Path) -> None:
    fifo = file.with_name("fifo")
    os.mkfifo(fifo)  # opening it would wait for a writer
    for path, reason in (
        (file, "No such file"),
        (file.parent, "Is a directory"),
        (fifo, "it is no regular file"),
    ):
        check_refused(path, rf"it cannot be read \({reason}.*; name the annotation file", ["unreadable_file"])
        with pytest.raises(UserError, match=rf"{path} cannot be read .*give data.val_annotations="):
            read_ground_truth(path)


# Labelling tools export these, so they are accepted. With the kinds of the examination's warnings.
SOUND: dict[str, tuple[Edit, list[str]]] = {
    "as it is": (lambda _: None, []),
    "ids of 64 bits": (image(id=1 - 2**63), ["id_range"]),
    "ids of 32 bits": (image(id=2**31), ["id_range"]),
    "category of the project": (lambda d: d["categories"].append({"id": 0, "name": "objects"}), []),
    "name twice": (lambda d: d["categories"].append({"id": 0, "name": "bus"}), ["category_name_duplicate"]),
    "file twice": (image(file_name="./b.png"), ["file_name_duplicate"]),
    "area null": (every("annotations", area=None), []),
    "iscrowd false": (box(iscrowd=True), []),
    "a mask": (every("annotations", segmentation={"size": [60, 90], "counts": "aab1"}), []),
    "annotations without an id": (lambda d: [entry.pop("id") for entry in d["annotations"]], []),
    "annotation ids null": (every("annotations", id=None), []),
    "annotation ids equal": (every("annotations", id=0), ["annotation_id_duplicate"] * 2),
    "annotation ids large": (box(id=900100448263), []),
    "more fields": (every("images", "categories", "annotations", extra={"name": "a.png", "id": "7"}), []),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "warnings"), SOUND.values(), ids=SOUND)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["", "byte-order mark"])
def test_harmless_differences_change_nothing(
    file: Path, mark: bytes, edit: Edit, warnings: list[str]
) -> None:
    write(file, edit)
    file.write_bytes(mark + file.read_bytes())
    assert [defect.kind for defect in examine_annotations(file)[1]] == warnings
    read = read_annotations(file, KEY)
    assert read.boxes_ltwh_px.tolist() == [[20, 10, 100, 50], [0, 0, 200, 100], [-3.5, 2.25, 8, 100]]
    assert (read.labels.tolist(), read.crowd.tolist()) == ([1, 2, 2], [False, False, True])
    assert (read.box_starts.tolist(), read.positions.tolist()) == ([0, 2, 2, 3], [0, 2, 1])
    assert read.images.tolist() == [0, 0, 2]
    assert read_ground_truth(file).truth.crowd.tolist() == [False, True, False]


def test_what_can_be_used_of_a_bad_file_is_kept(file: Path) -> None:
    edits = (
        image(id="x", width=None),
        box(bbox=[1, 2, 3], image_id=None),
        lambda d: d["annotations"][2].update(id=0.5),
    )
    write(file, both(*edits))
    annotations, _ = examine_annotations(file)
    assert annotations is not None
    assert annotations.image_ids.tolist() == [30, NO_ID, 20]
    assert annotations.sizes_px.tolist() == [[200, 100], [0, 0], [10, 10]]
    assert [name.decode() for name in annotations.file_names] == ["b.png", "sub/é.png", "a.png"]
    assert annotations.boxes_ltwh_px.tolist() == [[20, 10, 100, 50], [0, 0, 200, 100]]
    places = [annotations.where(row) for row in range(2)]
    assert places == ["annotations[0] (id 1)", "annotations[2] (id none)"]


def test_scoring_takes_what_pycocotools_takes(file: Path) -> None:
    """Images with nothing but an id, even twice; boxes without an area; annotation ids of any type."""
    entry = {"image_id": 4, "category_id": 2, "bbox": [1, 2, 3, 0], "id": "x"}
    document = {
        "images": [{"id": 9}, {"id": 4}, {"id": 9}],
        "categories": [{"id": 5}, {"id": 2}],
        "annotations": [entry, entry | {"area": 7, "iscrowd": True}],
    }
    file.write_bytes(codecs.BOM_UTF8 + json.dumps(document).encode())
    read = read_ground_truth(file)
    assert (read.image_ids.tolist(), read.category_ids.tolist()) == ([4, 9], [2, 5])
    assert (read.truth.images.tolist(), read.truth.categories.tolist()) == ([0, 0], [0, 0])
    assert (read.truth.areas.tolist(), read.truth.crowd.tolist()) == ([0, 7], [False, True])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (image(id="20"), r"Expected `int`, got `str` - at `\$\.images\[1\]\.id`; correct"),
        (box(bbox=[0, 0, 5]), r"length 4.*annotations\[1\]\.bbox"),
        (box(area=NAN), 'no JSON: .*"area": NaN.*; .*without NaN'),
        (box(image_id=31), r"annotations\[1\] .*: no entry of `images` has its image_id 31; correct"),
        (box(category_id=3), r"annotations\[1\] .*: no entry of `categories` has its category_id 3; "),
        (lambda d: d.pop("annotations"), "missing required field `annotations`"),
    ],
)
def test_ground_truth_that_cannot_be_scored_is_named(file: Path, edit: Edit, message: str) -> None:
    write(file, edit)
    with pytest.raises(UserError, match=f"^annotation file .*annotations.json: .*{message}"):
        read_ground_truth(file)
