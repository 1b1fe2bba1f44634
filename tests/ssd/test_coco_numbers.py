"""The 12 numbers against pycocotools, which is the definition, bit for bit."""

import contextlib
import copy
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd.evaluation.coco import NAMES, RESULT, coco_numbers, summary_lines

pytestmark = pytest.mark.unit

PUBLISHED = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)


def pycocotools_numbers(
    annotation_file: Path, results: list[dict[str, Any]], image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """Return them after checking that summary_lines are the lines which pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iouType="bbox")
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = dict(zip(NAMES, evaluation.stats.tolist(), strict=True))
    assert summary_lines(numbers) == printed.getvalue().splitlines()[-12:]
    return numbers


def with_large_ids(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to images' and categories' ids what float64 can't add without rounding."""
    fields = {"image_id", "category_id"} if "image_id" in entries[0] else {"id"}
    return [entry | {field: entry[field] + 2**60 for field in fields} for entry in entries]


def as_array(results: list[dict[str, Any]]) -> NDArray[np.void]:
    return np.array([tuple(result[field] for field in RESULT.names or ()) for result in results], RESULT)


@dataclass(frozen=True)
class Scene:
    """What a random set of boxes is like; the fields name what a family of sets is about.

    grid_px: coordinates are multiples of it; a coarse grid ties IoUs. score_steps: few of them tie scores.
    """

    images: int = 30
    categories: int = 5
    boxes: int = 8
    found: int = 25
    crowd: float = 0.05
    grid_px: float = 0.01
    score_steps: int = 10**6
    largest_px: float = 250
    empty: float = 0.2


SCENES = {
    "ordinary": Scene(),
    "many crowds": Scene(crowd=0.5),
    "tied scores": Scene(score_steps=5),
    "tied IoUs": Scene(grid_px=40, largest_px=120, score_steps=50, crowd=0.2, found=60),
    "more than 100 of a class in an image": Scene(images=4, categories=2, found=500, score_steps=40, empty=0),
    "small boxes, many outside the area range": Scene(largest_px=60, found=40),
    "mostly empty images and absent classes": Scene(images=100, categories=10, boxes=3, empty=0.8),
    "one class, one image": Scene(images=1, categories=1, boxes=4, found=30, empty=0),
}


def random_boxes(scene: Scene, count: int, draws: np.random.Generator) -> NDArray[np.float64]:
    corners = draws.uniform(0, 300, (count, 2))
    sides = np.exp(draws.uniform(np.log(6), np.log(scene.largest_px), (count, 2)))
    on_grid = np.round(np.hstack([corners, sides]) / scene.grid_px) * scene.grid_px
    return np.maximum(on_grid, (0, 0, scene.grid_px, scene.grid_px))


def random_annotations(scene: Scene, draws: np.random.Generator) -> dict[str, Any]:
    """Ids ascend neither in images nor in categories; images and half the classes may have no box."""
    image_ids = (draws.permutation(scene.images) * 7 + 3).tolist()
    category_ids = (draws.permutation(scene.categories) * 3 + 1).tolist()
    annotations: list[dict[str, Any]] = []
    for image_id in image_ids:
        count = 0 if draws.random() < scene.empty else int(draws.integers(1, 2 * scene.boxes))
        for box in random_boxes(scene, count, draws):
            area = float(draws.choice((box[2] * box[3], 32**2, 96**2, box[2] * box[3] * draws.random())))
            category_id = int(draws.choice(category_ids[: scene.categories // 2 + 1]))
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            crowd = int(draws.random() < scene.crowd)
            annotations.append(entry | {"bbox": box.tolist(), "area": area, "iscrowd": crowd})
    return {
        "info": {},
        "images": [{"id": number} for number in image_ids],
        "categories": [{"id": number, "name": str(number)} for number in category_ids],
        "annotations": [annotations[place] for place in draws.permutation(len(annotations))],
    }


def random_results(scene: Scene, truth: dict[str, Any], draws: np.random.Generator) -> list[dict[str, Any]]:
    """Half are annotated boxes, moved somewhat and mostly of the right class; half lie anywhere."""
    results = []
    for image in truth["images"]:
        there = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        for box in random_boxes(scene, 0 if draws.random() < scene.empty else scene.found, draws):
            category_id = draws.choice([entry["id"] for entry in truth["categories"]])
            if there and draws.random() < 0.5:
                source = there[draws.integers(len(there))]
                moved = np.array(source["bbox"]) + draws.normal(0, 0.15, 4) * np.tile(source["bbox"][2:], 2)
                box = np.maximum(np.round(moved / scene.grid_px) * scene.grid_px, scene.grid_px)
                category_id = source["category_id"] if draws.random() < 0.9 else category_id
            score = float(draws.integers(scene.score_steps) / scene.score_steps)
            result = {"image_id": image["id"], "category_id": int(category_id)}
            results.append(result | {"bbox": box.tolist(), "score": score})
    return [results[place] for place in draws.permutation(len(results))]


def write(folder: Path, content: Any) -> Path:
    file = folder / "content.json"
    file.write_text(json.dumps(content))
    return file


def small_truth(**changes: Any) -> dict[str, Any]:
    """One box on the first of two images, the second of two classes; changes go into its annotation."""
    box = {"id": 1, "image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
    return {
        "images": [{"id": 10}, {"id": 20}],
        "categories": [{"id": 2, "name": "two"}, {"id": 5, "name": "five"}],
        "annotations": [box | changes],
    }


FOUND = {"image_id": 10, "category_id": 5, "bbox": [10, 10, 50, 40], "score": 0.9}


@pytest.mark.real_data
def test_eval_pair_gives_the_published_digits_and_pycocotools_bits(test_data: Path) -> None:
    truth_file, results_file = sorted((test_data / "eval_pair").glob("*.json"))
    numbers = coco_numbers(truth_file, results_file)
    assert tuple(round(number, 3) for number in numbers.values()) == PUBLISHED
    assert numbers == pycocotools_numbers(truth_file, json.loads(results_file.read_text()))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_random_sets_give_pycocotools_bits(tmp_path: Path, scene: Scene, seed: int) -> None:
    draws = np.random.default_rng(seed)
    truth = random_annotations(scene, draws)
    results = random_results(scene, truth, draws)
    file = write(tmp_path, truth)
    numbers = coco_numbers(file, results)
    assert numbers == pycocotools_numbers(file, results)
    assert numbers["AR_100"] > 0  # the set is about something
    some = [image["id"] for image in truth["images"][::3]]
    of_some = coco_numbers(file, results, image_ids=[*some, some[0]])
    assert of_some == pycocotools_numbers(file, results, image_ids=some)


def test_list_file_and_array_give_the_same_numbers_and_so_do_ids_of_any_size(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    truth = random_annotations(SCENES["tied scores"], draws)
    results = random_results(SCENES["tied scores"], truth, draws)
    file = write(tmp_path, truth)
    some = [image["id"] for image in truth["images"][::3]]
    numbers, of_some = coco_numbers(file, results), coco_numbers(file, results, some)
    assert numbers != of_some
    large = with_large_ids(results)
    large_file = tmp_path / "large.json"
    large_file.write_text(json.dumps({key: value and with_large_ids(value) for key, value in truth.items()}))
    for truth_file, entries, more in ((file, results, 0), (large_file, large, 2**60)):
        given, rows = copy.deepcopy(entries), as_array(entries)
        results_file = tmp_path / "results.json"
        results_file.write_text(json.dumps(entries))
        for form in (given, rows, results_file, str(results_file)):
            assert coco_numbers(str(truth_file), form) == numbers
            assert coco_numbers(truth_file, form, [number + more for number in some]) == of_some
        assert given == entries
        assert np.array_equal(rows, as_array(entries))


def test_numpy_scalars_in_a_list_count_as_numbers(tmp_path: Path) -> None:
    found = FOUND | {"image_id": np.int64(10), "bbox": np.array(FOUND["bbox"]), "score": np.float32(0.5)}
    assert coco_numbers(write(tmp_path, small_truth()), [found])["AP"] == pytest.approx(1)


@pytest.mark.parametrize("emptied", [(), ("annotations",), ("annotations", "categories", "images")])
def test_without_detections_what_counts_is_0_and_the_rest_minus_1(
    tmp_path: Path, emptied: tuple[str, ...]
) -> None:
    file = write(tmp_path, small_truth() | {section: [] for section in emptied})  # its one box is medium
    uncounted = NAMES if emptied else ("AP_small", "AP_large", "AR_small", "AR_large")
    for nothing in ([], np.empty(0, RESULT)):
        assert coco_numbers(file, nothing) == {name: -1.0 if name in uncounted else 0.0 for name in NAMES}


@pytest.mark.parametrize(
    "change",
    [
        {"id": 0},  # which pycocotools takes for no match
        {"area": None},  # the box's
        {"area": ...},
        {"iscrowd": ...},
        {"iscrowd": True},
    ],
)
def test_what_an_annotation_may_leave_open(tmp_path: Path, change: dict[str, Any]) -> None:
    changed = small_truth(**change)
    entry = changed["annotations"][0]
    changed["annotations"] = [{key: value for key, value in entry.items() if value is not ...}]
    numbers = coco_numbers(write(tmp_path, changed), [FOUND])
    file = write(tmp_path, small_truth(iscrowd=int(change == {"iscrowd": True})))
    assert numbers == coco_numbers(file, [FOUND]) == pycocotools_numbers(file, [FOUND])
