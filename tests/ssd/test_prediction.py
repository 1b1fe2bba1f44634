"""Which pictures are found, and the files they are drawn to. All of predict.py: tests/test_predict.py."""

from pathlib import Path

import pytest
from PIL import Image

from ssd.errors import UserError
from ssd.prediction import SUFFIXES, find_pictures

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


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("", ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]),
        ("*", ["b.JPG"]),
        ("**/*", ["a/b.png", "a/c/x.tif", "a/z.webp", "b.JPG"]),
        ("**/b.*", ["a/b.png", "b.JPG"]),
        ("a/[a-y].*", ["b.png"]),
        ("notes.txt", ["notes.txt"]),  # a file given by name is taken whatever its suffix
        ("[1]*.dat", ["[1]*.dat"]),
    ],
)
def test_names_begin_at_the_folder_or_where_a_glob_begins_to_vary(place: str, found: list[str], photos: Path):
    touch(photos, "._b.jpg", ".trash/old.jpg", "[1]*.dat")  # hidden files and folders are skipped
    files = find_pictures([f"{photos}/{place}"], Path("elsewhere"))
    assert [(file.image_id, file.name) for file in files] == [*enumerate(found, start=1)]


def test_broken_links_are_found_and_named_when_they_are_read(photos: Path):
    (photos / "a" / "gone.jpg").symlink_to("nowhere")
    (photos / "a" / "loop.jpg").symlink_to("loop.jpg")
    assert names(photos / "a") == ["b.png", "c/x.tif", "gone.jpg", "loop.jpg", "z.webp"]


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
    assert names(photos / "a", out=photos) == ["b.png", "c/x.tif", "z.webp"]  # a folder inside out is taken


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
        ("missing.jpg", "missing.jpg: it is neither a file nor a folder; quote"),
        ("*.jpeg", r"photos/\*\.jpeg: no picture found"),
        ("a/f*", "no picture found"),
        ("empty", "photos/empty: no picture found; .*.webp"),
    ],
)
def test_a_place_without_pictures_is_named_even_beside_others(place: str, message: str, photos: Path):
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        names(photos, photos / place)


def test_pillow_reads_every_suffix_that_is_looked_for():
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} <= set(Image.OPEN)


def test_jpeg_and_png_keep_their_names_and_others_get_jpg_added(photos: Path):
    touch(photos, "s/A.JPEG", "a.jfif", "a.PNG", "notes.jpg/c", "x" * 251 + ".png")  # the longest names
    files = find_pictures([str(photos), str(photos / "notes.jpg" / "c")], Path("out"))
    added = {file.name: file.drawn.relative_to("out").as_posix() for file in files}
    others = {"a/c/x.tif": "a/c/x.tif.jpg", "a/z.webp": "a/z.webp.jpg", "notes.jpg/c": "notes.jpg/c.jpg"}
    assert added == {file.name: file.name for file in files} | others


@pytest.mark.parametrize("pictures", [["x.png", "photos/x.png"], ["a.webp", "a.webp.jpg"]])
def test_no_picture_is_drawn_over_one_that_was_found_or_drawn(pictures: list[str], tmp_path: Path):
    """out contains photos/photos/: the drawing of photos/photos/x.png would overwrite photos/x.png."""
    folder = touch(tmp_path / "photos", *pictures)
    with pytest.raises(UserError, match=r"is already another picture's; rename one or give another"):
        find_pictures([str(folder)], tmp_path)
