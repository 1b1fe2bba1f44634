"""Pictures found, drawn and written; predict.py as a whole: tests/test_predict.py."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd.categories import Categories
from ssd.detector import Prediction
from ssd.errors import UserError
from ssd.prediction import (
    SUFFIXES,
    Output,
    PictureFile,
    count_rows,
    drawn_name,
    find_pictures,
)

pytestmark = pytest.mark.unit

CATEGORIES = Categories((18, 90), ("dog", "[bold]tooth brush"))

# Finding


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return touch(tmp_path / "photos", "b.JPG", "a/b.png", "a/z.webp", "a/c/x.tif", "notes.txt", "a/film.mpg")


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(*places: object, out: Path = Path("elsewhere")) -> list[str]:
    return [file.name for file in find_pictures([str(place) for place in places], out)]


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("", ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]),
        ("*", ["b.JPG"]),
        ("**/*", ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]),
        ("**/b.*", ["a/b.png", "b.JPG"]),
        ("a/[a-y].*", ["b.png"]),
        ("?/c/*.tif", ["a/c/x.tif"]),
        ("notes.txt", ["notes.txt"]),  # a file that is named is taken whatever it is called
        ("[1]*.dat", ["[1]*.dat"]),
    ],
)
def test_names_begin_at_the_folder_or_where_a_glob_begins_to_vary(place: str, found: list[str], photos: Path):
    touch(photos, "._b.jpg", ".trash/old.jpg", "[1]*.dat")  # hidden files and folders are passed over
    os.mkfifo(photos / "a" / "fifo.jpg")  # and what would never end, or never begin
    (photos / "b.png").symlink_to("/dev/zero")
    files = find_pictures([f"{photos}/{place}"], Path("elsewhere"))
    assert [(file.image_id, file.name) for file in files] == [*enumerate(found, start=1)]


def test_broken_links_are_found_and_named_when_they_are_read(photos: Path):
    (photos / "a" / "gone.jpg").symlink_to("nowhere")
    (photos / "a" / "loop.jpg").symlink_to("loop.jpg")
    files = find_pictures([str(photos / "a")], Path("elsewhere"))
    assert [file.name for file in files] == ["b.png", "c/x.tif", "gone.jpg", "loop.jpg", "z.webp"]


def test_pictures_of_one_name_stay_apart_and_each_is_found_once(photos: Path):
    one, other = touch(photos.parent / "one", "x.jpg"), touch(photos.parent / "other", "x.jpg")
    assert names(one / "x.jpg", other, other / "x.jpg", f"{one}/*") == ["one/x.jpg", "other/x.jpg"]


def test_paths_are_relative_to_the_working_folder_even_one_with_brackets_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(touch(tmp_path / "set[1]", "x.jpg", "sub/x.jpg"))
    assert names("*.jpg") == names("./sub/../x.jpg") == ["x.jpg"]
    assert names(".") == names("**") == ["sub/x.jpg", "x.jpg"]


def test_what_was_drawn_before_is_not_found_again(photos: Path):
    before = names(photos, out=photos / "predictions")
    touch(photos / "predictions", *before)
    for place in (photos, f"{photos}/**", f"{photos}/**/*.*"):
        assert names(place, out=photos / "predictions") == before
    assert names(photos / "a", out=photos) == ["b.png", "c/x.tif", "z.webp"]  # but in a folder that out holds


@pytest.mark.parametrize("place", ["", "/b.JPG", "/*"])
def test_out_is_not_the_folder_of_the_pictures(place: str, photos: Path):
    link = photos.parent / "link"
    link.symlink_to(photos)
    for out in (photos, link, photos / "a" / ".."):
        with pytest.raises(UserError, match=r"^out=.*give another folder"):
            names(f"{photos}{place}", out=out)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("fifo.jpg", "fifo.jpg is neither a file nor a folder"),
        ("missing.jpg", "missing.jpg is neither a file nor a folder.*needs quotes"),
        ("*.jpeg", r"no picture in .*photos/\*\.jpeg.*\*\*/\*\.jpg"),
        ("a/f*", "no picture in"),
        ("empty", "no picture in .*photos/empty;.*.webp"),
    ],
)
def test_a_place_without_pictures_is_named_even_beside_others(place: str, message: str, photos: Path):
    (photos / "empty").mkdir()
    os.mkfifo(photos / "fifo.jpg")
    with pytest.raises(UserError, match=message):
        names(photos, photos / place)


def test_pillow_reads_every_suffix_that_is_looked_for():
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} <= set(Image.OPEN)


# Drawing and writing


def write(
    folder: Path,
    name: str,
    picture: Image.Image | None = None,
    found: Sequence[tuple[list[float], float, int]] = (),
) -> list[dict]:
    file = PictureFile(7, Path("photos") / name, name, folder / drawn_name(name, [name]))
    boxes_ltrb_px, scores, labels = (np.array([each[k] for each in found]) for k in range(3))
    names = [CATEGORIES.name_of(label) for label in labels.astype(int)]
    picture = picture or Image.new("RGB", (40, 30))
    output = Output(folder, CATEGORIES)
    results = output.write_picture(file, Prediction(boxes_ltrb_px, scores, labels, names, picture))
    output.write_json(results)
    return results


@pytest.mark.parametrize(
    ("name", "drawn", "kind"),
    [
        ("a.jpg", "a.jpg", "JPEG"),
        ("s/A.JPEG", "s/A.JPEG", "JPEG"),
        ("a.jfif", "a.jfif", "JPEG"),
        ("a.PNG", "a.PNG", "PNG"),
        ("a.webp", "a.webp.jpg", "JPEG"),
        ("a.b/c", "a.b/c.jpg", "JPEG"),
        ("x" * 251 + ".png", "x" * 251 + ".png", "PNG"),  # as long as names can be
    ],
)
def test_jpeg_and_png_keep_their_names_and_others_become_jpegs(
    name: str, drawn: str, kind: str, tmp_path: Path
):
    write(tmp_path / "new" / "out", name)
    with Image.open(tmp_path / "new" / "out" / drawn) as picture:
        assert (picture.format, picture.mode, picture.size) == (kind, "RGB", (40, 30))


def test_no_two_pictures_are_drawn_to_one_file():
    names = ["a", "a.jpg", "a.png", "a.webp", "a.webp.jpg", "a.webp.jpg.jpg", "a.tif", "s/a.jpg"]
    drawn = {name: drawn_name(name, names) for name in names}
    assert len(set(drawn.values())) == len(names)
    assert drawn["a.webp.jpg"] == "a.webp.jpg"


def test_what_was_found_is_drawn_and_written_unclipped_in_cocos_format(tmp_path: Path):
    found = [([-10.5, 100, 200, 320], 0.75, 1), ([1, 2, 3, 4], 0.5, 2)]
    write(tmp_path, "s/a.png", Image.new("RGB", (300, 300)), found)
    dog = {"category_id": 18, "bbox": [-10.5, 100, 210.5, 220], "score": 0.75}
    brush = {"category_id": 90, "bbox": [1, 2, 2, 2], "score": 0.5}
    same = {"image_id": 7, "file_name": "s/a.png"}
    assert json.loads((tmp_path / "detections.json").read_text()) == [same | dog, same | brush]
    assert np.asarray(Image.open(tmp_path / "s" / "a.png")).any()


def test_a_file_that_cannot_be_written_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.png").write_text("before")

    def full(_picture: Image.Image, path: Path, **_options: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"a\.png can't be written \(No space left on device\)"):
        write(tmp_path, "a.png")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.png", "before")]


def test_no_picture_is_drawn_over_one_that_was_found(tmp_path: Path):
    """out holds photos/, and photos/ holds a folder of the same name: photos/x.png would go onto itself."""
    folder = touch(tmp_path / "photos", "x.png", "photos/x.png")
    with pytest.raises(UserError, match=r"photos/x\.png is one of the pictures; give another folder"):
        find_pictures([str(folder)], tmp_path)


def test_classes_of_one_name_are_counted_together():
    results = [{"image_id": image, "category_id": category} for image, category in ((1, 3), (1, 5), (2, 5))]
    rows = count_rows([*results, {"image_id": 2, "category_id": 7}], Categories((3, 5, 7), ("a", "a", "b")))
    assert rows == {"a": "    3 on     2 pictures", "b": "    1 on     1 picture"}
