import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd.categories import Categories
from ssd.errors import UserError
from ssd.prediction.find import PictureFile, find_pictures
from ssd.prediction.output import Output, count_rows, drawn_names
from ssd.prediction.predictor import Found

pytestmark = pytest.mark.unit

CATEGORIES = Categories((18, 90), ("dog", "[bold]tooth brush"))
NOTHING = Found(np.empty((0, 4)), [], [])


def picture_file(name: str, folder: Path = Path("photos")) -> PictureFile:
    return PictureFile(1, folder / name, name)


def output(folder: Path, *names: str) -> Output:
    return Output(folder, [picture_file(name) for name in names], CATEGORIES)


def blank(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("a.jpg", "a.jpg"),
        ("s/A.JPEG", "s/A.JPEG"),
        ("a.PNG", "a.PNG"),
        ("a.webp", "a.webp.jpg"),
        ("a.b/c", "a.b/c.jpg"),
        ("a.jpg.tif", "a.jpg.tif.jpg"),
    ],
)
def test_jpeg_and_png_keep_their_names_and_others_become_jpegs(name: str, drawn: str):
    assert drawn_names([name]) == {name: drawn}


def test_no_two_pictures_are_drawn_to_one_file():
    names = ["a", "a.jpg", "a.png", "a.webp", "a.webp.jpg", "a.webp.jpg.jpg", "a.tif", "s/a.jpg"]
    drawn = drawn_names(names)
    assert set(drawn) == set(names)
    assert len(set(drawn.values())) == len(names)
    assert drawn["a.webp.jpg"] == "a.webp.jpg"


@pytest.mark.parametrize(("name", "kind"), [("s/a.jfif", "JPEG"), ("a.png", "PNG"), ("a.gif", "JPEG")])
def test_a_drawn_picture_has_the_kind_of_its_name_and_the_size_of_the_picture(
    name: str, kind: str, tmp_path: Path
):
    out = output(tmp_path / "new" / "out", name)
    out.write_picture(picture_file(name), blank(), NOTHING)
    with Image.open(tmp_path / "new" / "out" / drawn_names([name])[name]) as drawn:
        assert (drawn.format, drawn.mode, drawn.size) == (kind, "RGB", (40, 30))


def test_a_profile_of_rgb_values_is_kept_and_another_kinds_is_not(tmp_path: Path):
    for name in ("a.png", "a.jpg"):
        for space, kept in ((b"RGB ", True), (b"CMYK", False), (b"GRAY", False)):
            picture = blank()
            picture.info["icc_profile"] = bytes(16) + space + bytes(108)
            output(tmp_path, name).write_picture(picture_file(name), picture, NOTHING)
            with Image.open(tmp_path / name) as drawn:
                assert ("icc_profile" in drawn.info) is kept


def test_what_was_found_is_drawn_and_written_unclipped_in_cocos_format(tmp_path: Path):
    out = output(tmp_path, "s/a.png")
    picture = blank((300, 300))
    found = Found(np.array([[-10.5, 100, 200, 320], [1, 2, 3, 4]]), [0.75, 0.5], [1, 2])
    results = out.write_picture(PictureFile(7, Path("photos/s/a.png"), "s/a.png"), picture, found)
    out.write_json(results)
    assert json.loads((tmp_path / "detections.json").read_text()) == [
        {
            "image_id": 7,
            "file_name": "s/a.png",
            "category_id": 18,
            "bbox": [-10.5, 100, 210.5, 220],
            "score": 0.75,
        },
        {"image_id": 7, "file_name": "s/a.png", "category_id": 90, "bbox": [1, 2, 2, 2], "score": 0.5},
    ]
    assert np.asarray(Image.open(tmp_path / "s" / "a.png")).any()


def test_nothing_found_is_an_empty_list(tmp_path: Path):
    output(tmp_path).write_json([])
    assert json.loads((tmp_path / "detections.json").read_text()) == []


def test_a_file_that_cannot_be_written_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = output(tmp_path, "a.png")
    (tmp_path / "a.png").write_text("before")

    def full(_picture: Image.Image, path: Path, **_options: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png can't be written \(No space left on device\)"):
        out.write_picture(picture_file("a.png"), blank(), NOTHING)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.png", "before")]


def test_a_name_as_long_as_names_can_be_is_written(tmp_path: Path):
    name = "x" * 251 + ".png"
    output(tmp_path, name).write_picture(picture_file(name), blank(), NOTHING)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_an_error_before_anything_is_done(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        output(tmp_path / place, "a.png")


def test_no_picture_is_drawn_over_one_that_was_found(tmp_path: Path):
    """out holds photos/, and photos/ holds a folder of the same name: photos/x.png would go onto itself."""
    folder = tmp_path / "photos"
    (folder / "photos").mkdir(parents=True)
    for name in ("x.png", "photos/x.png"):
        blank().save(folder / name)
    files = find_pictures([str(folder)], tmp_path)
    with pytest.raises(UserError, match=r"photos/x\.png is one of the pictures; give another folder"):
        Output(tmp_path, files, CATEGORIES)


def test_classes_are_counted_by_detections_and_by_pictures_most_frequent_first():
    found = [(1, 18), (1, 90), (2, 90), (2, 90)]
    results = [{"image_id": image, "category_id": category} for image, category in found]
    rows = count_rows(results, CATEGORIES)
    assert list(rows) == ["[bold]tooth brush", "dog"]
    assert [row.split() for row in rows.values()] == [
        ["3", "on", "2", "pictures"],
        ["1", "on", "1", "picture"],
    ]
