"""Ground truth and detections that can't be scored are refused with file, entry and fix."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssd.errors import UserError
from ssd.evaluation.coco import RESULT, coco_numbers

pytestmark = pytest.mark.unit

TRUTH = {
    "images": [{"id": 10}, {"id": 20}, {"id": 2**60}],
    "categories": [{"id": 2, "name": "two"}, {"id": 5, "name": "five"}],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
    ],
}
TEXT = json.dumps(TRUTH)
GOOD = {"image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "score": 0.9}
ROW = (10, 5, (1, 2, 3, 4), 0.5)  # of RESULT


@pytest.fixture
def truth_file(tmp_path: Path) -> Path:
    file = tmp_path / "truth.json"
    file.write_text(TEXT)
    return file


def test_the_good_entry_is_good(truth_file: Path) -> None:
    assert coco_numbers(truth_file, [GOOD])["AR_100"] == 0.5
    assert coco_numbers(truth_file, np.array([ROW], RESULT))["AR_100"] == 0


def test_bad_annotation_file(truth_file: Path) -> None:
    """What else is wrong with one: tests/ssd/test_annotations.py."""
    truth_file.write_text(TEXT[:-30])
    with pytest.raises(UserError, match=r"truth\.json.*truncated"):
        coco_numbers(truth_file, [GOOD])


BAD_ENTRIES = [
    ({"image_id": 30}, r"has the image_id 30, which .*truth\.json does not list.*give the file that lists"),
    ({"category_id": 1}, r"has the category_id 1, which .*truth\.json does not list.*not the labels 1 to K"),
    ({"image_id": 10.5}, "is .*10.5, .*; give COCO's results, .*, the ids whole numbers"),
    ({"category_id": float("nan")}, "is .*nan, .*; give COCO's results"),
    (
        {"image_id": "10"},
        r"is \{'image_id': '10', .*; give COCO's results, a list of objects with image_id, category_id",
    ),
    ({"score": None}, "is .*'score': None}; give COCO's results"),
    ({"score": True}, "is .*'score': True}; give COCO's results"),
    ({"bbox": [1, 2, 3]}, r"is .*'bbox': \[1, 2, 3\], .*; give COCO's results"),
    ({"bbox": []}, r"is .*'bbox': \[\], .*; give COCO's results"),
    ({"bbox": 7}, "is .*'bbox': 7, .*; give COCO's results"),
    ({"bbox": ["1", "2", "3", "4"]}, r"is .*'bbox': \['1', '2', '3', '4'\], .*; give COCO's results"),
    ({"bbox": [1, 2, float("nan"), 4]}, r"has the bbox \[1\.0, 2\.0, nan, 4\.0\].*must be finite"),
    ({"score": float("inf")}, "has .* score inf, which must be finite"),
]


def test_ids_may_be_whole_floats(truth_file: Path) -> None:
    floats = GOOD | {field: float(GOOD[field]) for field in ("image_id", "category_id")}
    assert coco_numbers(truth_file, [GOOD, floats]) == coco_numbers(truth_file, [GOOD, GOOD])


@pytest.mark.parametrize(("change", "said"), BAD_ENTRIES)
def test_bad_entry_of_a_list_or_a_file(truth_file: Path, change: dict[str, Any], said: str) -> None:
    results = [GOOD, GOOD | change, GOOD | change]
    if change != {"score": True}:  # which numpy takes for 1 among other numbers
        with pytest.raises(UserError, match=f"^detections: entry 1 {said}"):
            coco_numbers(truth_file, results)
    results_file = truth_file.with_name("results.json")
    results_file.write_text(json.dumps(results[1:]))
    with pytest.raises(UserError, match=rf"^detections .*results\.json: entry 0 {said}"):
        coco_numbers(truth_file, results_file)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([GOOD, [10, 5]], r"entry 1 is \[10, 5\]; give COCO's results"),
        ([GOOD, GOOD | {"image_id": 10**30}], "entry 1 is .*10{30}, .*; give COCO"),
        ([GOOD, GOOD | {"image_id": 40}, GOOD | {"image_id": 30}], "entry 1 .* first of 2 such entries"),
        *(
            (
                [GOOD, {name: GOOD[name] for name in GOOD if name != field}],
                "entry 1 is .*; give COCO's results",
            )
            for field in GOOD
        ),
        (None, "a NoneType; give COCO's results, a list of"),
        ({"annotations": []}, "a dict; give COCO's results"),
        (np.zeros((3, 7)), "a ndarray; give COCO's results"),
        (np.array([ROW, (10, 5, (1, 2, 3, 4), np.nan)], RESULT), "entry 1 .*score nan"),
        (np.array([ROW, (10, 5, (1, np.inf, 3, 4), 0.5)], RESULT), "entry 1 .*inf.* must be finite"),
        (np.array([ROW, (10, 1, (1, 2, 3, 4), 0.5)], RESULT), "entry 1 has the category_id 1, which"),
        ([GOOD, GOOD | {"image_id": 2.0**60}], "entry 1 is .*, the ids whole numbers"),
    ],
)
def test_bad_results(truth_file: Path, results: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"^detections: .*{said}"):
        coco_numbers(truth_file, results)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, " cannot be read.*name a json file"),
        (json.dumps([GOOD])[:-5].encode(), ": not valid JSON, or truncated"),
        (b"\xff\xfe\xfd", ": not valid JSON"),
        (TEXT.encode(), ": a dict; give COCO's results"),
    ],
    ids=["missing", "truncated", "no text", "no list"],
)
def test_bad_file_of_results(truth_file: Path, content: bytes | None, said: str) -> None:
    file = truth_file.with_name("results.json")
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"results\.json{said}"):
        coco_numbers(truth_file, file)


def test_image_ids_that_the_file_does_not_list(truth_file: Path) -> None:
    with pytest.raises(UserError, match=r"image_ids: .*truth\.json does not list 30; give ids"):
        coco_numbers(truth_file, [GOOD], image_ids=[10, 30, 40])
