"""Ground truth and detections that can't be scored are refused with file, entry and mend."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd.errors import UserError
from ssd.evaluation.coco import coco_numbers

pytestmark = pytest.mark.unit

TRUTH = {
    "images": [{"id": 10}, {"id": 20}],
    "categories": [{"id": 2, "name": "two"}, {"id": 5, "name": "five"}],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
    ],
}
GOOD = {"image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "score": 0.9}


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(TRUTH))
    return file


def test_the_good_entry_is_good(truth_file: Path) -> None:
    assert coco_numbers(truth_file, [GOOD])["AR_100"] == 0.5


def test_missing_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read.*give data\.val_annotations="):
        coco_numbers(tmp_path / "none.json", [GOOD])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "truncated.*fetch it anew"),
        (json.dumps(TRUTH)[:-30], "truncated.*fetch it anew"),
        ("no json", r"invalid character \(byte \d\) in b'no json'"),
        (json.dumps(TRUTH).replace("2000", "NaN"), r'invalid character.*"area": NaN'),
        ("[]", "Expected `object`, got `array`; edit"),
        ('{"images": [], "categories": []}', "missing required field `annotations`; edit"),
        (json.dumps(TRUTH).replace('"id": 20', '"id": "20"'), r"Expected `int`, got `str`.*images\[1\]\.id"),
        (json.dumps(TRUTH).replace("[0, 0, 5, 5]", "[0, 0, 5]"), r"length 4.*annotations\[1\]\.bbox"),
        (json.dumps(TRUTH).replace("2000", "1e999"), r"out of range.*annotations\[0\]\.area"),
        (
            json.dumps(TRUTH).replace('"image_id": 20', '"image_id": 30'),
            r"annotations\[1\] has the image_id 30, which no entry of `images` has; correct it",
        ),
        (
            json.dumps(TRUTH).replace('"category_id": 2', '"category_id": 3'),
            r"annotations\[1\] has the category_id 3, which no entry of `categories` has; correct it",
        ),
    ],
)
def test_bad_annotation_file(truth_file: Path, text: str, said: str) -> None:
    truth_file.write_text(text)
    with pytest.raises(UserError, match=rf"annotation file .*truth\.json: .*{said}"):
        coco_numbers(truth_file, [GOOD])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"image_id": 30},
            "1 is of images .*truth.json does not list; entry 1, the first, has the image_id 30",
        ),
        ({"category_id": 1}, "1 is of categories .* entry 1, .* category_id 1; .*not the labels"),
        ({"image_id": 10.5}, r"entry 1 has the image_id 10\.5, not a whole number"),
        ({"category_id": float("nan")}, "entry 1 has the category_id nan, not a whole number"),
        ({"image_id": "10"}, "entry 1 has the image_id '10', not a number"),
        ({"image_id": 10**30}, "too large for 64 bits"),
        ({"score": None}, "entry 1 has the score None, not a number"),
        ({"score": "0.5"}, "entry 1 has the score '0.5', not a number"),
        ({"bbox": [1, 2, 3]}, r"entry 1 has the bbox \[1, 2, 3\], not 4 numbers"),
        ({"bbox": []}, r"entry 1 has the bbox \[\], not 4 numbers"),
        ({"bbox": 7}, "entry 1 has the bbox 7, not 4 numbers"),
        ({"bbox": ["1", "2", "3", "4"]}, r"entry 1 has the bbox \['1', '2', '3', '4'\], not 4 numbers"),
        (
            {"bbox": [1, 2, float("nan"), 4]},
            r"entry 1 has the bbox \[1\.0, 2\.0, nan, 4\.0\].*must be finite",
        ),
        ({"score": float("inf")}, "entry 1 has .*score inf, which must be finite"),
    ],
)
def test_bad_entry_of_a_list_or_a_file(truth_file: Path, change: dict[str, Any], said: str) -> None:
    results = [GOOD, GOOD | change]
    with pytest.raises(UserError, match=f"^detections: .*{said}"):
        coco_numbers(truth_file, results)
    results_file = truth_file.with_name("results.json")
    results_file.write_text(json.dumps(results))
    with pytest.raises(UserError, match=rf"^detections .*results\.json: .*{said}"):
        coco_numbers(truth_file, results_file)


@pytest.mark.parametrize("field", GOOD)
def test_entry_without_a_field(truth_file: Path, field: str) -> None:
    without = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(UserError, match=f"entry 2 has no {field}; write it as COCO's results are"):
        coco_numbers(truth_file, [GOOD, GOOD, without])


def test_every_entry_bad_in_the_same_way_is_refused_too(truth_file: Path) -> None:
    for change in ({"score": True}, {"score": "high"}, {"bbox": [1, 2, 3]}, {"image_id": "10"}):
        with pytest.raises(UserError, match="entry 0 has the"):
            coco_numbers(truth_file, [GOOD | change, GOOD | change])


def test_entry_that_is_no_object(truth_file: Path) -> None:
    results: list[Any] = [GOOD, [10, 5]]
    with pytest.raises(UserError, match=r"entry 1 is \[10, 5\], not an object with image_id"):
        coco_numbers(truth_file, results)


def test_every_stranger_is_counted(truth_file: Path) -> None:
    with pytest.raises(UserError, match=r"2 are of images .* entry 1, the first, has the image_id 40"):
        coco_numbers(truth_file, [GOOD, GOOD | {"image_id": 40}, GOOD | {"image_id": 30}])


@pytest.mark.parametrize("results", [None, {"annotations": []}, ({},)])
def test_what_is_no_list(truth_file: Path, results: Any) -> None:
    with pytest.raises(UserError, match=f"a {type(results).__name__}; give COCO's results, a list of"):
        coco_numbers(truth_file, results)


def test_file_of_detections_that_is_missing_truncated_or_no_list(truth_file: Path) -> None:
    file = truth_file.with_name("results.json")
    with pytest.raises(UserError, match=r"results\.json cannot be read.*name a json file"):
        coco_numbers(truth_file, file)
    file.write_text(json.dumps([GOOD])[:-5])
    with pytest.raises(UserError, match=r"results\.json: no JSON text, or one that breaks off.*anew"):
        coco_numbers(truth_file, file)
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match=r"results\.json: no JSON text"):
        coco_numbers(truth_file, file)
    file.write_text(json.dumps(TRUTH))
    with pytest.raises(UserError, match=r"results\.json: a dict; give COCO's results"):
        coco_numbers(truth_file, file)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.zeros((3, 6)), r"an array of shape \(3, 6\) and dtype float64; give n×7"),
        (np.zeros(7), r"an array of shape \(7,\)"),
        (
            np.zeros((3, 7), dtype=object),
            "dtype object; give n×7 float64 numbers, the columns image_id, left",
        ),
        (np.array([(10, 1, 2, 3, 4, 0.5, 5), (10, 1, 2, 3, 4, np.nan, 5)]), "entry 1 .*score nan"),
        (
            np.array([(10, 1, 2, 3, 4, 0.5, 5), (10, 1, np.inf, 3, 4, 0.5, 5)]),
            "entry 1 .*inf.* must be finite",
        ),
        (np.array([(10.5, 1, 2, 3, 4, 0.5, 5)]), r"entry 0 has the image_id 10\.5, not a whole number"),
        (
            np.array([(10, 1, 2, 3, 4, 0.5, 1e300)]),
            r"entry 0 has the category_id 1e\+300, not a whole number",
        ),
        (np.array([(11, 1, 2, 3, 4, 0.5, 5)]), "1 is of images .*image_id 11; give the file that lists"),
        (np.array([(10, 1, 2, 3, 4, 0.5, 6)]), "1 is of categories .*category_id 6; write that file's ids"),
    ],
)
def test_bad_array(truth_file: Path, rows: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^detections: .*{said}"):
        coco_numbers(truth_file, rows)


def test_image_ids_that_the_file_does_not_list(truth_file: Path) -> None:
    with pytest.raises(UserError, match=r"image_ids: .*truth\.json does not list 30 \(nor 1 others\)"):
        coco_numbers(truth_file, [GOOD], image_ids=[10, 30, 40])
