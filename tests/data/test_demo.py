"""The embedded set: the same bytes for the same seed, boxes that fit the pixels, whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from data.demo import folder as demo
from data.demo.__main__ import main
from data.demo.folder import IDS_PER_SPLIT, PARAMETERS_FILE, generate
from data.demo.landscape import WEATHERS, Landscape
from data.demo.objects import CATEGORIES, Category, Ground, render
from data.demo.scene import MIN_VISIBLE, Placed, annotate, compose, drop_hidden, make_scene, mask_of
from data.doctor.examine import examine
from data.doctor.findings import Kind
from ssd.config import CheckDatasetConfig, DataSource
from ssd.console import RunConsole
from ssd.errors import UserError

pytestmark = pytest.mark.unit

IN_THE_SKY = next(category for category in CATEGORIES if category.ground is Ground.SKY)
SMALL = {"train_images": 1, "val_images": 1, "seed": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 24 and 10 images."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    generate(folder, train_images=24, val_images=10)
    return folder


def content(folder: Path, split: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"annotations/instances_{split}2017.json").read_text())
    return loaded


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def block(width: int, height: int, left: int, top: int) -> Placed:
    return Placed(IN_THE_SKY, Image.new("RGBA", (width, height), (255, 0, 0, 255)), left, top)


def test_a_picture_depends_on_its_seed_split_and_number_alone(tmp_path: Path, made: Path):
    generate(tmp_path / "few", train_images=3, val_images=2)
    generate(tmp_path / "other", train_images=2, val_images=2, seed=2)
    few, many, other = (
        {name: data for name, data in files(folder).items() if name.endswith(".jpg")}
        for folder in (tmp_path / "few", made, tmp_path / "other")
    )
    assert len(few) == 5
    assert few.items() <= many.items()
    assert len({*many.values(), *other.values()}) == 34 + 4
    boxes = content(tmp_path / "few", "train")["annotations"]
    assert boxes == content(made, "train")["annotations"][: len(boxes)]


@pytest.mark.parametrize("category", CATEGORIES, ids=[category.name for category in CATEGORIES])
def test_box_is_tight_around_the_pixels_that_hide_the_background(category: Category):
    sprite = render(category, 90.0, light_from=0.5, rng=np.random.default_rng(3))
    placed = Placed(replace(category, ground=Ground.SKY), sprite, 100, 80)  # which throws no shadow
    composed = []
    for grey in (0, 255):
        pixels = np.full((360, 480, 3), grey, np.float32)
        landscape = Landscape(pixels, WEATHERS[0], 0.0, 150.0, (160.0, 360.0), None, None)
        composed.append(compose(landscape, [placed])[..., 0])
    ys, xs = np.nonzero(255 - (composed[1] - composed[0]) >= 128)
    left, top, width, height = annotate(category, mask_of(placed, 480, 360)).box_ltwh_px
    assert (left, top, left + width, top + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert height == pytest.approx(90, rel=0.2)


ENOUGH = round(100 * MIN_VISIBLE)  # pixels of a block 100 wide


@pytest.mark.parametrize(
    ("objects", "boxes_ltwh_px"),
    [
        # a part shows, or enough, or too little
        ([block(40, 20, 10, 10), block(30, 60, 35, 0)], [(10, 10, 25, 20), (35, 0, 30, 60)]),
        ([block(100, 50, 0, 9), block(100, 50, ENOUGH, 9)], [(0, 9, ENOUGH, 50), (ENOUGH, 9, 100, 50)]),
        ([block(100, 50, 0, 9), block(100, 50, ENOUGH - 1, 9)], [(ENOUGH - 1, 9, 100, 50)]),
        # enough inside the picture, or too little
        ([block(100, 50, 200 - ENOUGH, 9)], [(200 - ENOUGH, 9, ENOUGH, 50)]),
        ([block(100, 50, 201 - ENOUGH, 9)], []),
        # what is left out hides nothing
        (
            [block(60, 30, 0, 0), block(60, 30, 40, 0), block(60, 30, 45, 0)],
            [(0, 0, 45, 30), (45, 0, 60, 30)],
        ),
    ],
)
def test_boxes_are_of_what_shows_if_enough_does(objects: list[Placed], boxes_ltwh_px: list[tuple[int, ...]]):
    kept = [annotate(placed.category, visible) for placed, visible in drop_hidden(objects, 200, 100)]
    assert [one.box_ltwh_px for one in kept] == boxes_ltwh_px
    assert [one.area_px for one in kept] == [width * height for _, _, width, height in boxes_ltwh_px]


def test_the_doctor_finds_nothing_wrong_and_every_category_and_size_is_there(made: Path):
    report = examine(CheckDatasetConfig(data=DataSource(path=str(made))), RunConsole(is_main=False))
    assert report.is_fit
    assert {finding.kind for _, finding in report.findings} <= {Kind.category_without_boxes}
    train, val = report.splits["train"], report.splits["val"]
    assert (train.images, val.images) == (24, 10)
    assert train.images_without_boxes > 0
    assert all(train.boxes_of_class.values())
    ids = [category["id"] for category in content(made, "train")["categories"]]
    assert len(train.boxes_of_class) == len(ids) < max(ids)  # with gaps, as COCO's
    areas = np.array([one["area"] for one in content(made, "train")["annotations"]])
    assert all(np.histogram(areas, [0, 32**2, 96**2, np.inf])[0] > 0)


def test_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "make_scene", Mock(side_effect=[make_scene(0, 0, 0), KeyboardInterrupt]))
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "deeper" / "set", **SMALL)
    assert list((tmp_path / "deeper").iterdir()) == []


def test_a_finished_set_is_left_alone_and_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "set"
    folder.mkdir()  # an empty folder is filled
    generate(folder, **SMALL)
    before = files(folder)
    monkeypatch.setattr(demo, "make_scene", None)
    generate(folder, **SMALL)
    for other in ({"train_images": 2}, {"val_images": 2}, {"seed": 1}):
        with pytest.raises(UserError, match=r"set holds .* made with .*'seed': 0.*delete it"):
            generate(folder, **SMALL | other)
    assert files(folder) == before
    stored = folder / PARAMETERS_FILE
    stored.write_text(stored.read_text().replace('"edition": 1', '"edition": 0'))
    with pytest.raises(UserError, match="'edition': 0"):
        generate(folder, **SMALL)


@pytest.mark.parametrize("name", ["photograph.jpg", PARAMETERS_FILE])
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    for folder in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=rf"{tmp_path}.*delete it, or give another folder"):
            generate(folder, **SMALL)
    assert files(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-images=0"], "--train-images 1 to"),
        (["--val-images=-1"], "--val-images 1 to"),
        ([f"--train-images={IDS_PER_SPLIT}"], "--train-images 1 to"),
        (["--seed=-1"], "--seed 0 or more"),
        ([], "/proc/set can't be written ("),
    ],
)
def test_command_line_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main(["/proc/set", *arguments])
    assert message in capsys.readouterr().err
