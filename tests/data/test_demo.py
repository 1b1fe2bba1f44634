import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.demo import folder as demo
from data.demo.__main__ import main
from data.demo.folder import IDS_PER_SPLIT, PARAMETERS_FILE, generate
from data.demo.landscape import WEATHERS, Landscape, paint_landscape
from data.demo.objects import CATEGORIES, Category, Ground, render
from data.demo.scene import (
    MIN_VISIBLE,
    Placed,
    annotate,
    compose,
    drop_hidden,
    make_scene,
    mask_of,
    place_objects,
)
from ssd.errors import UserError

pytestmark = pytest.mark.unit

IN_THE_SKY = next(category for category in CATEGORIES if category.ground is Ground.SKY)
CATEGORY_NAMES = [category.name for category in CATEGORIES]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 40 and 10 images."""
    folder = tmp_path_factory.mktemp("demo") / "set"
    generate(folder, train_images=40, val_images=10)
    return folder


def annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}2017.json"


def content(folder: Path, split: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(annotation_file(folder, split).read_text())
    return loaded


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def block(width: int, height: int, left: int, top: int, category: Category = IN_THE_SKY) -> Placed:
    return Placed(category, Image.new("RGBA", (width, height), (255, 0, 0, 255)), left, top)


def plain_landscape(grey: int) -> Landscape:
    pixels = np.full((360, 480, 3), grey, np.float32)
    return Landscape(pixels, WEATHERS[0], 0.0, 150.0, (160.0, 360.0), None, None)


def extent_ltrb(mask: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(mask)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


# Seeded: the same bytes.


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(tmp_path / name, train_images=4, val_images=2, seed=7)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_first_images_and_boxes_do_not_depend_on_how_many_follow(tmp_path: Path, made: Path) -> None:
    generate(tmp_path / "few", train_images=3, val_images=2)
    few, many = files(tmp_path / "few"), files(made)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 5
    for name in pictures:
        assert few[name] == many[name]
    few_boxes = content(tmp_path / "few", "train")["annotations"]
    assert few_boxes == content(made, "train")["annotations"][: len(few_boxes)]


def test_another_seed_and_the_other_split_give_other_pictures(tmp_path: Path, made: Path) -> None:
    generate(tmp_path / "other", train_images=2, val_images=2, seed=2)
    other = [data for name, data in files(tmp_path / "other").items() if name.endswith(".jpg")]
    ours = [data for name, data in files(made).items() if name.endswith(".jpg")]
    assert len(set(ours + other)) == 50 + 4


# Boxes against pixels.


@pytest.mark.parametrize("category", CATEGORIES, ids=CATEGORY_NAMES)
def test_box_is_tight_around_the_pixels_that_hide_the_background(category: Category) -> None:
    sprite = render(category, 90.0, light_from=0.5, rng=np.random.default_rng(3))
    placed = Placed(replace(category, ground=Ground.SKY), sprite, 100, 80)  # which throws no shadow
    on_black, on_white = (compose(plain_landscape(grey), [placed]) for grey in (0, 255))
    opacity = 255 - (on_white - on_black)[..., 0]
    expected_ltrb = extent_ltrb(opacity >= 128)
    left, top, width, height = annotate(category, mask_of(placed, 480, 360)).box_ltwh_px
    assert [left, top, left + width, top + height] == expected_ltrb
    assert height == pytest.approx(90, rel=0.2)


def test_boxes_of_crowded_scenes_enclose_what_changes_with_the_objects_colour() -> None:
    compared = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        landscape = paint_landscape(480, 360, rng)
        objects = [
            replace(placed, category=replace(placed.category, ground=Ground.SKY))  # which throws no shadow
            for placed in place_objects(landscape, rng)
        ]
        kept = drop_hidden(objects, 480, 360)
        for number, (placed, visible) in enumerate(kept):
            pictures = []
            for colour in ("black", "white"):
                flat = Image.new("RGBA", placed.sprite.size, colour)
                flat.putalpha(placed.sprite.getchannel("A"))
                painted = [one for one, _ in kept]
                painted[number] = replace(placed, sprite=flat)
                pictures.append(compose(landscape, painted)[..., 0])
            left, top, width, height = annotate(placed.category, visible).box_ltwh_px
            # Where two soft edges meet, opacities mix: 2 pixels.
            expected_ltrb = extent_ltrb(pictures[1] - pictures[0] >= 0.75 * 128)
            assert [left, top, left + width, top + height] == pytest.approx(expected_ltrb, abs=2)
            compared += 1
    assert compared >= 12


def test_box_and_area_are_of_the_visible_part() -> None:
    far, near = block(40, 20, left=10, top=10), block(30, 60, left=35, top=0)
    kept = drop_hidden([far, near], 100, 80)
    boxes = [annotate(placed.category, visible) for placed, visible in kept]
    assert [one.box_ltwh_px for one in boxes] == [(10, 10, 25, 20), (35, 0, 30, 60)]
    assert [one.area_px for one in boxes] == [25 * 20, 30 * 60]


@pytest.mark.parametrize("missing", ["behind a nearer object", "beyond the picture's edge"])
def test_object_that_shows_too_little_is_left_out(missing: str) -> None:
    enough, width = round(100 * MIN_VISIBLE), 200
    for visible, expected in ((enough, 1), (enough - 1, 0)):
        if missing == "behind a nearer object":
            objects = [block(100, 50, left=0, top=10), block(100, 50, left=visible, top=10)]
        else:
            objects = [block(100, 50, left=width - visible, top=10), block(20, 20, left=0, top=0)]
        assert len(drop_hidden(objects, width, 100)) == expected + 1


def test_object_that_is_left_out_hides_nothing() -> None:
    far, between = block(60, 30, left=0, top=0), block(60, 30, left=40, top=0)
    near = block(60, 30, left=45, top=0)
    kept = drop_hidden([far, between, near], 200, 100)
    assert [annotate(placed.category, visible).box_ltwh_px for placed, visible in kept] == [
        (0, 0, 45, 30),
        (45, 0, 60, 30),
    ]


# What is in it.


def test_annotations_are_valid_coco(made: Path) -> None:
    image_ids = []
    for split in ("train", "val"):
        loaded = content(made, split)
        sizes = {}
        for image in loaded["images"]:
            with Image.open(made / f"{split}2017" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
                assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes[image["id"]] = picture.size
        image_ids += [image["id"] for image in loaded["images"]]
        assert len(list((made / f"{split}2017").iterdir())) == len(sizes)
        annotations = loaded["annotations"]
        assert len({one["id"] for one in annotations}) == len(annotations) > 0
        for one in annotations:
            left, top, width, height = one["bbox"]
            image_width, image_height = sizes[one["image_id"]]
            assert 0 <= left < left + width <= image_width
            assert 0 <= top < top + height <= image_height
            assert 0 < one["area"] <= width * height
            assert one["iscrowd"] == 0
    assert len(set(image_ids)) == len(image_ids) == 50


def test_every_category_and_size_occurs_and_some_images_are_empty(made: Path) -> None:
    train = content(made, "train")
    counts = Counter(one["category_id"] for one in train["annotations"])
    assert set(counts) == {category["id"] for category in train["categories"]}
    assert len(counts) >= 6
    areas = np.array([one["area"] for one in train["annotations"]])
    assert all(np.histogram(areas, [0, 32**2, 96**2, np.inf])[0] > 0)
    for split, empty in (("train", 2), ("val", 1)):
        loaded = content(made, split)
        with_objects = {one["image_id"] for one in loaded["annotations"]}
        assert len(loaded["images"]) - len(with_objects) >= empty


def test_some_objects_hide_others_in_part(made: Path) -> None:
    loaded = content(made, "train")
    overlaps = 0
    for image in loaded["images"]:
        boxes = [one["bbox"] for one in loaded["annotations"] if one["image_id"] == image["id"]]
        for number, (left, top, width, height) in enumerate(boxes):
            overlaps += any(
                left < x + w and x < left + width and top < y + h and y < top + height
                for x, y, w, h in boxes[:number]
            )
    assert overlaps >= 5


def test_category_ids_have_gaps_and_names_are_unique(made: Path) -> None:
    categories = content(made, "val")["categories"]
    ids = [category["id"] for category in categories]
    assert len(set(ids)) == len(ids) < max(ids)
    assert [category["name"] for category in categories] == list(dict.fromkeys(CATEGORY_NAMES))
    assert all(category["supercategory"] for category in categories)


# Where it is written.


def test_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()

    def interrupted(seed: int, split: int, index: int) -> Any:
        calls["images"] += 1
        if calls["images"] == 3:
            raise KeyboardInterrupt
        return make_scene(seed, split, index)

    monkeypatch.setattr(demo, "make_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", train_images=2, val_images=2)
    assert calls["images"] == 3
    assert list(tmp_path.iterdir()) == []
    generate(tmp_path / "set", train_images=2, val_images=2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_finished_set_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path / "set", train_images=1, val_images=1)
    annotation_file(tmp_path / "set", "val").write_text("mine")
    monkeypatch.setattr(demo, "make_scene", None)
    generate(tmp_path / "set", train_images=1, val_images=1)
    assert annotation_file(tmp_path / "set", "val").read_text() == "mine"


@pytest.mark.parametrize("other", [{"train_images": 2}, {"val_images": 2}, {"seed": 1}])
def test_set_of_other_parameters_is_refused(tmp_path: Path, other: dict[str, int]) -> None:
    arguments = {"train_images": 1, "val_images": 1, "seed": 0}
    generate(tmp_path / "set", **arguments)
    before = files(tmp_path / "set")
    with pytest.raises(UserError, match=r"set holds .* made with .*'seed': 0.*delete it"):
        generate(tmp_path / "set", **(arguments | other))
    assert files(tmp_path / "set") == before


def test_set_of_another_edition_is_refused(tmp_path: Path) -> None:
    generate(tmp_path / "set", train_images=1, val_images=1)
    stored = tmp_path / "set" / PARAMETERS_FILE
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"edition": 0}))
    with pytest.raises(UserError, match="'edition': 0"):
        generate(tmp_path / "set", train_images=1, val_images=1)


@pytest.mark.parametrize("name", ["photograph.jpg", PARAMETERS_FILE])
def test_folder_of_something_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{tmp_path}.*delete it, or give another folder"):
        generate(tmp_path, train_images=1, val_images=1)
    assert files(tmp_path) == {name: b"mine"}


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("mine")
    with pytest.raises(UserError, match="not an embedded set"):
        generate(tmp_path / "set", train_images=1, val_images=1)


def test_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deeper"):
        generate(folder, train_images=1, val_images=1)
        assert len(content(folder, "train")["images"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_images": 0}, "--train-images 1 to"),
        ({"val_images": -1}, "--val-images 1 to"),
        ({"train_images": IDS_PER_SPLIT}, "--train-images 1 to"),
        ({"seed": -1}, "--seed 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_command_line_prints_what_it_made(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(made), "--train-images", "40", "--val-images", "10"])
    printed = capsys.readouterr().out
    annotations = content(made, "train")["annotations"]
    trees = sum(one["category_id"] == 13 for one in annotations)
    small = sum(one["area"] < 32**2 for one in annotations)
    assert "train: 40 images" in printed
    assert f"{len(annotations)} boxes" in printed
    assert f"{trees} tree," in printed
    assert f"{small} small," in printed


def test_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photograph.jpg").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert "delete it, or give another folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["/proc/set"])
    assert "/proc/set can't be written (" in capsys.readouterr().err
