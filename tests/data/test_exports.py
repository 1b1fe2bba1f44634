"""COCO files as labelling tools export them: taken where nothing is in doubt, else refused by entry."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data.coco import read_index
from data.doctor.examination import examine
from data.doctor.findings import Severity
from data.doctor.report import SplitReport
from ssd.config import CheckDataConfig, CheckDatasetConfig, Split
from ssd.errors import UserError
from tests.data.coco_folder import CocoFolder, Entry, noise_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> CocoFolder:
    return noise_folder(tmp_path / "set", 4)


def every(section: str, **values: object) -> Callable[[CocoFolder], None]:
    """An edit that gives each entry of a list these values."""

    def edit(data: CocoFolder) -> None:
        for entry in getattr(data, section):
            entry |= values

    return edit


def converted(kind: type, *fields: str) -> Callable[[CocoFolder], None]:
    """An edit that turns the values of these fields, wherever they stand, into another type."""

    def edit(data: CocoFolder) -> None:
        for entry in entries(data):
            entry |= {field: kind(entry[field]) for field in fields if field in entry}

    return edit


def entries(data: CocoFolder) -> list[Entry]:
    return data.images + data.annotations + data.categories


def numbered_from_0(data: CocoFolder) -> None:
    numbers = {category["id"]: number for number, category in enumerate(data.categories)}
    for annotation in data.annotations:
        annotation["category_id"] = numbers[annotation["category_id"]]
    for category in data.categories:
        category["id"] = numbers[category["id"]]


def with_root_category(data: CocoFolder) -> None:
    """Roboflow's first category is the project itself; no annotation has it."""
    data.categories.insert(0, {"id": 0, "name": "objects", "supercategory": "none"})


def in_a_subfolder(data: CocoFolder) -> None:
    """Label Studio puts pictures into images/."""
    (data.image_folder / "images").mkdir()
    for image in data.images:
        (data.image_folder / image["file_name"]).rename(data.image_folder / "images" / image["file_name"])
        image["file_name"] = f"images/{image['file_name']}"


def without_ids(data: CocoFolder) -> None:
    for annotation in data.annotations:
        del annotation["id"]


SOUND: dict[str, Callable[[CocoFolder], None]] = {
    "neither area nor iscrowd nor polygons": lambda _: None,
    "categories from 0": numbered_from_0,
    "category of the project": with_root_category,
    "area null": every("annotations", area=None),
    "area 0": every("annotations", area=0),
    "iscrowd 0": every("annotations", iscrowd=0),
    "iscrowd false": every("annotations", iscrowd=False),
    "no polygons": every("annotations", segmentation=[]),
    "a mask": every("annotations", segmentation={"size": [60, 90], "counts": "aab1"}),
    "attributes": every("annotations", attributes={"occluded": False, "rotation": 0.0}),
    "annotations without an id": without_ids,
    "annotation ids null": every("annotations", id=None),
    "annotation ids equal": every("annotations", id=0),
    "images with more": every("images", license=None, flickr_url="", extra={"name": "a.png"}),
    "images in a subfolder": in_a_subfolder,
    "categories in a tree": every("categories", supercategory=None, keypoints=[], skeleton=[]),
}


def examined(data: CocoFolder) -> SplitReport:
    config = CheckDataConfig(
        train_images=str(data.image_folder),
        train_annotations=str(data.annotation_file),
        threads=1,
        cache=str(data.folder / "cache"),
    )
    (report,) = examine(CheckDatasetConfig([Split.train], data=config), lambda *_: None).splits
    return report


def errors(report: SplitReport) -> list[str]:
    """Say what is an error: kind, place and detail."""
    return [
        f"{finding.kind.name} {finding.where}: {finding.detail}"
        for finding in report.findings
        if finding.kind.value.severity is Severity.error
    ]


@pytest.mark.parametrize("edit", SOUND.values(), ids=SOUND)
def test_harmless_differences_change_nothing(data: CocoFolder, edit: Callable[[CocoFolder], None]) -> None:
    names = [category["name"] for category in data.categories]
    expected = read_index(data.annotation_file, data.image_folder)
    edit(data)
    data.write()
    index = read_index(data.annotation_file, data.image_folder)
    assert index.boxes_ltrb.tolist() == expected.boxes_ltrb.tolist()
    found = [index.categories.name_of(label) for label in index.labels.tolist()]
    assert found == [names[label - 1] for label in expected.labels.tolist()]
    report = examined(data)
    assert errors(report) == []
    assert report.truth is not None
    assert report.truth.ap == pytest.approx(1, abs=1e-12)


REFUSED: dict[str, tuple[Callable[[CocoFolder], None], str, str]] = {
    "ids that are floats": (
        converted(float, "id", "image_id", "category_id"),
        r"images\[0\]\.id \(id 100\.0\): Expected `int`, got `float`; edit the file",
        r"id_fraction images\[0\] \(id 100\.0\): id 100\.0",
    ),
    "category ids that are floats": (
        converted(float, "category_id"),
        r"annotations\[0\]\.category_id \(id 1000\): Expected `int`, got `float`",
        r"id_fraction annotations\[0\] \(id 1000\): category_id \d+\.0",
    ),
    "image ids that are text": (
        converted(str, "image_id"),
        r"annotations\[0\]\.image_id \(id 1000\): Expected `int`, got `str`",
        r"id_text annotations\[0\] \(id 1000\): image_id '100'",
    ),
    "sizes that are floats": (
        converted(float, "width", "height"),
        r"images\[0\]\.\w+ \(id 100\): Expected `int`, got `float`",
        r"field_type images\[0\] \(id 100\): width \d+\.0, not a whole number of pixels",
    ),
    "sizes null": (
        every("images", width=None, height=None),
        r"images\[0\]\.width \(id 100\): Expected `int`, got `null`",
        r"field_type images\[0\] \(id 100\): width None, not a whole number of pixels",
    ),
    "iscrowd null": (
        every("annotations", iscrowd=None),
        r"annotations\[0\]\.iscrowd \(id 1000\): Expected `bool \| int`, got `null`",
        r"field_type annotations\[0\] \(id 1000\): iscrowd None, not 0 or 1",
    ),
    "polygons without boxes": (
        every("annotations", bbox=[]),
        r"annotations\[0\]\.bbox \(id 1000\): Expected `array` of length 4",
        r"box_length annotations\[0\] \(id 1000\): bbox \[\]",
    ),
    "paths of the machine that labelled": (
        every("images", file_name="/data/upload/1/a.png"),
        r"images\[0\] \(id 100\): file_name '/data/upload/1/a.png' is no relative path inside data\.train_im",
        r"path_leaves_folder images\[0\] \(id 100\): file_name '/data/upload/1/a.png'",
    ),
}


@pytest.mark.parametrize(("edit", "message", "finding"), REFUSED.values(), ids=REFUSED)
def test_what_is_in_doubt_is_named_by_training_and_doctor(
    data: CocoFolder, edit: Callable[[CocoFolder], None], message: str, finding: str
) -> None:
    edit(data)
    data.write()
    with pytest.raises(UserError, match=message):
        read_index(data.annotation_file, data.image_folder)
    assert any(re.match(finding, error) for error in errors(examined(data)))
