import os
from pathlib import Path

import pytest

from ssd.errors import UserError
from ssd.prediction.find import SUFFIXES, find_pictures

pytestmark = pytest.mark.unit


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


def test_a_folder_is_searched_through_for_pictures_sorted_by_name(photos: Path):
    assert names(photos) == ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]


def test_image_ids_are_places_in_the_sorted_list_from_1(photos: Path):
    files = find_pictures([str(photos)], Path("elsewhere"))
    assert [file.image_id for file in files] == [1, 2, 3, 4]
    assert [file.path for file in files] == [photos / file.name for file in files]


def test_hidden_files_and_folders_are_no_pictures(photos: Path):
    touch(photos, "._b.jpg", ".trash/old.jpg")
    assert names(photos) == names(f"{photos}/**") == ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*", ["b.JPG"]),
        ("**/*", ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]),
        ("**/b.*", ["a/b.png", "b.JPG"]),
        ("a/[a-y].*", ["b.png"]),
        ("?/c/*.tif", ["a/c/x.tif"]),
    ],
)
def test_a_globs_names_begin_where_it_begins_to_vary(pattern: str, found: list[str], photos: Path):
    assert names(f"{photos}/{pattern}") == found


def test_a_file_that_is_named_is_taken_whatever_it_is_called(photos: Path):
    assert names(photos / "notes.txt") == ["notes.txt"]
    touch(photos, "[1]*.dat")
    assert names(photos / "[1]*.dat") == ["[1]*.dat"]


def test_pictures_of_one_name_stay_apart_and_each_is_found_once(photos: Path):
    one, other = touch(photos.parent / "one", "x.jpg"), touch(photos.parent / "other", "x.jpg")
    assert names(one / "x.jpg", other, other / "x.jpg", f"{one}/*") == ["one/x.jpg", "other/x.jpg"]


def test_paths_are_relative_to_the_working_folder_even_one_with_brackets_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(touch(tmp_path / "set[1]", "x.jpg", "sub/x.jpg"))
    assert names("*.jpg") == names("./sub/../x.jpg") == ["x.jpg"]
    assert names(".") == names("**") == ["sub/x.jpg", "x.jpg"]


def test_a_name_that_is_no_utf8_is_found_and_can_be_printed(tmp_path: Path):
    (tmp_path / os.fsdecode(b"x\xff.jpg")).touch()
    (file,) = find_pictures([str(tmp_path)], Path("elsewhere"))
    assert file.path.exists()
    str(file).encode("utf-8")


def test_what_was_drawn_before_is_not_found_again(photos: Path):
    before = names(photos, out=photos / "predictions")
    touch(photos / "predictions", *before)
    for place in (photos, f"{photos}/**", f"{photos}/**/*.*"):
        assert names(place, out=photos / "predictions") == before


def test_pictures_are_found_in_a_folder_that_out_holds(photos: Path):
    assert names(photos, out=photos.parent) == names(photos)


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
        ("missing.jpg", "missing.jpg is neither a file nor a folder.*needs quotes"),
        ("*.jpeg", r"no picture matches .*photos/\*\.jpeg.*\*\*/\*\.jpg"),
        ("a/f*", "no picture matches"),
        ("empty", "photos/empty holds no picture.*.webp"),
    ],
)
def test_a_place_without_pictures_is_named_even_beside_others(place: str, message: str, photos: Path):
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        names(photos, photos / place)


def test_pillow_reads_every_suffix_that_is_looked_for():
    from PIL import Image

    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} <= set(Image.OPEN)
