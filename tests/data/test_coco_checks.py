"""A data set that cannot be used is refused with its file, the entry and the mend."""

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest

from data.coco import read_index
from data.doctor.document import read_entries
from ssd.errors import UserError
from ssd.evaluation.coco import coco_numbers
from tests.data.coco_folder import EVERY_VAL_IMAGE, CocoFolder, index_of, three_pictures

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> CocoFolder:
    return three_pictures(tmp_path)


def edited(**changes: object) -> Callable[[CocoFolder], None]:
    """Return an edit: section__entry__key=value, as in images__0__width=0."""

    def edit(data: CocoFolder) -> None:
        for place, value in changes.items():
            section, number, key = place.split("__")
            getattr(data, section)[int(number)][key] = value

    return edit


def without_categories(data: CocoFolder) -> None:
    data.categories = []


def without_images(data: CocoFolder) -> None:
    data.images = []


def without_bbox(data: CocoFolder) -> None:
    del data.annotations[1]["bbox"]


BAD_ENTRIES = {
    "no categories": (without_categories, "`categories` is missing or empty; add"),
    "category twice": (edited(categories__2__id=7), r"categories\[2\] has the id 7 of categories\[0\]; give"),
    "no images": (without_images, "`images` is empty; name another"),
    "image twice": (edited(images__2__id=30), r"images\[2\] has the id 30 of images\[0\]; give"),
    "unknown category": (
        edited(annotations__1__category_id=99),
        r"annotations\[1\] \(id 1001\): no entry of `categories` has its category_id 99; correct",
    ),
    "unknown image": (
        edited(annotations__2__image_id=5),
        r"annotations\[2\] \(id 1002\): no entry of `images` has its image_id 5; correct",
    ),
    "width 0": (edited(images__1__width=0), r"images\[1\] \(id 10\): width 0 and height 100 .* write"),
    "height negative": (edited(images__1__height=-1), r"images\[1\] \(id 10\): width 200 and height -1"),
    "height absurd": (
        edited(images__1__height=2**20 + 1),
        r"images\[1\] \(id 10\): .* at most 1048576; write",
    ),
    "absolute file name": (
        edited(images__1__file_name="/etc/c.png"),
        r"images\[1\] \(id 10\): file_name '/etc/c.png' is no relative path inside",
    ),
    "file name going up": (
        edited(images__1__file_name="sub/../../c.png"),
        r"images\[1\] .*\.\./c.png' is no relative path inside data.train_images=",
    ),
    "file name empty": (
        edited(images__1__file_name=""),
        r"images\[1\] \(id 10\): file_name '' is no relative path",
    ),
    "file name with a NUL": (
        edited(images__1__file_name="c\0.png"),
        r"images\[1\] \(id 10\): file_name 'c\\x00.png' holds a NUL character.*correct it",
    ),
    "bbox of 3": (
        edited(annotations__1__bbox=[1, 2, 3]),
        r"annotations\[1\].bbox \(id 1001\): .*length 4; edit",
    ),
    "bbox of text": (
        edited(annotations__1__bbox=[1, 2, "3", 4]),
        r"annotations\[1\].bbox\[2\] \(id 1001\): .*`str`",
    ),
    "bbox missing": (without_bbox, r"annotations\[1\] \(id 1001\): .*missing required field `bbox`"),
    "NaN in bbox": (
        edited(annotations__1__bbox=[1, 2, float("nan"), 4]),
        r"annotations\[1\].bbox\[2\] \(id 1001\): .*NaN or Infinity",
    ),
    "infinity in bbox": (
        edited(annotations__1__bbox=[1, 2, float("-inf"), 4]),
        r"annotations\[1\].bbox\[2\] \(id 1001\): .*NaN or Infinity",
    ),
    "NaN elsewhere": (edited(annotations__1__area=float("nan")), "it holds NaN or Infinity"),
    "id of text": (edited(images__1__id="10"), r"images\[1\].id \(id 10\): Expected `int`, got `str`"),
    "id too large": (edited(images__1__id=2**63), r"images\[1\].id"),
}


@pytest.mark.parametrize(("edit", "message"), BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_bad_entry_is_named_with_its_file_and_mend(
    data: CocoFolder, edit: Callable[[CocoFolder], None], message: str
) -> None:
    edit(data)
    with pytest.raises(UserError, match=message) as caught:
        index_of(data)
    assert str(caught.value).startswith(f"data.train_annotations={data.annotation_file}: ")


def test_number_beyond_floating_point_is_named(data: CocoFolder) -> None:
    data.write()
    text = data.annotation_file.read_text().replace("[20, 10, 100, 50]", "[20, 10, 1e999, 50]")
    data.annotation_file.write_text(text)
    with pytest.raises(UserError, match=r"annotations\[0\].bbox\[2\] \(id 1000\): Number out of range"):
        read_index(data.annotation_file, data.image_folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b'{"images": [{"id": 1, "file_name": "a', "breaks off after 37 bytes"),
        (b"\xff\xd8\xff\xe0 a photograph", "no JSON text, unexpected character at byte 0"),
        (b"image,label\n1,2\n", "no JSON text, unexpected character at byte 0 in 'image,label"),
        (b'{"images": [], }', "no JSON text, unexpected character at byte 15"),
        (b"[1, 2]", "Expected `object`, got `array`"),
        (b'{"annotations": []}', "missing required field `images`"),
        (
            b'{"images": [{"id": 1, "file_name": "\xff.png", "width": 1, "height": 1}]}',
            "no JSON text .*utf-8",
        ),
        ('{"images": []}'.encode("utf-16"), "UTF-16 text.* save it as UTF-8"),
        (codecs.BOM_UTF8, "is empty"),
        (codecs.BOM_UTF8 + b'{"images": [NaN', "NaN or Infinity"),
        (codecs.BOM_UTF8 + b'{"images": ,', "unexpected character at byte 11 in '{\"images\": ,'"),
    ],
)
def test_file_that_is_no_annotation_file_is_named(data: CocoFolder, text: bytes, message: str) -> None:
    data.annotation_file.write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        read_index(data.annotation_file, data.image_folder)
    assert str(data.annotation_file) in str(caught.value)


@pytest.mark.parametrize("closed", [True, False])
def test_brackets_nested_too_deeply_are_named(data: CocoFolder, closed: bool) -> None:
    nest = "[" * 200_000 + "]" * 200_000 * closed
    data.annotation_file.write_text(f'{{"info": {nest}, "images": []}}')
    with pytest.raises(UserError, match="brackets are nested too deeply"):
        read_index(data.annotation_file, data.image_folder)


def test_first_of_two_defects_is_named_where_the_second_hides_its_id(data: CocoFolder) -> None:
    data.images[1]["width"] = "200"
    data.write()
    whole = data.annotation_file.read_text()
    assert index_error(data, whole).endswith(
        r"images[1].width (id 10): Expected `int`, got `str`; edit the file"
    )
    for second in (whole[:-20], whole.replace("bird", "\0"), whole.replace('"bird"', "[" * 200_000)):
        assert index_error(data, second).endswith("images[1].width: Expected `int`, got `str`; edit the file")


def test_byte_order_mark_is_passed_over(data: CocoFolder) -> None:
    """Notepad, PowerShell and Excel begin UTF-8 with one."""
    expected = index_of(data).fingerprint()
    data.annotation_file.write_bytes(codecs.BOM_UTF8 + data.annotation_file.read_bytes())
    assert read_index(data.annotation_file, data.image_folder).fingerprint() == expected
    assert read_entries(data.annotation_file).findings == []
    assert coco_numbers(data.annotation_file, [])["AP"] == 0


def index_error(data: CocoFolder, text: str) -> str:
    data.annotation_file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_index(data.annotation_file, data.image_folder)
    return str(caught.value)


def test_download_cut_short_anywhere_is_refused(data: CocoFolder) -> None:
    data.write()
    text = data.annotation_file.read_bytes()
    for length in range(1, len(text), 7):
        data.annotation_file.write_bytes(text[:length])
        with pytest.raises(UserError, match="breaks off"):
            read_index(data.annotation_file, data.image_folder)


def test_missing_annotation_file_is_named_by_its_override(data: CocoFolder) -> None:
    path = data.folder / "none.json"
    with pytest.raises(
        UserError, match=r"data.val_annotations=.*none.json.*No such file.*data.val_annotations="
    ):
        read_index(path, data.image_folder, EVERY_VAL_IMAGE)
    with pytest.raises(UserError, match="Is a directory"):
        read_index(data.folder, data.image_folder)
