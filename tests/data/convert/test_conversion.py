"""The folder that a conversion makes, how it deals pictures, and the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.convert.conversion import Format, Options, convert
from data.convert.dataset import Header, Picture
from data.convert.folder import Link
from data.convert.splits import deal
from ssd.errors import UserError
from tests.conftest import ROOT
from tests.data.convert.folders import YOLO_LINE, coco_folder, picture, rows, to_coco, yolo_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE, b=YOLO_LINE)


def named(*names: str) -> list[Picture]:
    return [Picture(Path(name), name, Header(1, 1), ()) for name in names]


NAMES = [f"{number:03}.png" for number in range(100)]


def test_dealing_depends_on_names_and_seed_alone() -> None:
    one, again, other = (
        deal(named(*NAMES), 0.2, 0),
        deal(named(*NAMES[::-1]), 0.2, 0),
        deal(named(*NAMES), 0.2, 1),
    )
    val = [{picture.name for picture in dealt["val"]} for dealt in (one, again, other)]
    assert val[0] == val[1] != val[2]
    assert {picture.name for picture in one["train"]} == set(NAMES) - val[0]


def test_dealing_hardly_moves_when_a_picture_is_added() -> None:
    before, after = deal(named(*NAMES), 0.2, 0), deal(named(*NAMES, "new.png"), 0.2, 0)
    val, val_after = ({picture.name for picture in dealt["val"]} for dealt in (before, after))
    assert len(val ^ val_after) <= 2


@pytest.mark.parametrize(
    ("count", "fraction", "val"), [(10, 0.2, 2), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)]
)
def test_dealing_leaves_no_split_empty(count: int, fraction: float, val: int) -> None:
    dealt = deal(named(*NAMES[:count]), fraction, 0)
    assert (len(dealt["train"]), len(dealt["val"])) == (count - val, val)


def test_a_single_picture_cannot_be_dealt() -> None:
    with pytest.raises(UserError, match=r"a.png is the only picture, one split stays empty; add"):
        deal(named("a.png"), 0.2, 0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fraction_that_leaves_a_split_empty_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"--val-fraction .*: give a number between 0 and 1"):
        Options(val_fraction=fraction)


def test_given_splits_are_kept_whatever_the_fraction(source: Path, tmp_path: Path) -> None:
    said = to_coco(source, "yolo", tmp_path / "out", Options(val_fraction=0.9))
    assert (set(rows(tmp_path / "out", "train")), set(rows(tmp_path / "out", "val"))) == (
        {"a.png", "b.png"},
        {"v.png"},
    )
    assert not any("dealt" in line for line in said)


def test_coco_set_without_validation_annotations_is_dealt(tmp_path: Path) -> None:
    pictures = {f"{number}.png": [("ant", (1.0, 1.0, 5.0, 5.0), 0)] for number in range(5)}
    coco_folder(tmp_path / "coco", {"train": pictures}, ("ant",))
    said = convert(tmp_path / "coco", Format.coco, tmp_path / "yolo", Format.yolo, Options())
    assert len(list((tmp_path / "yolo" / "images" / "val").iterdir())) == 1
    assert any("dealt by file name" in line for line in said)


def test_pictures_are_linked_or_copied_unchanged(source: Path, tmp_path: Path) -> None:
    original = source / "images" / "val" / "v.png"
    for link in Link:
        to_coco(source, "yolo", tmp_path / link.value, Options(link=link))
        made = tmp_path / link.value / "val2017" / "v.png"
        assert made.read_bytes() == original.read_bytes()
        assert made.is_symlink() == (link is Link.symlink)
        assert made.samefile(original) == (link is not Link.copy)


def test_hard_link_to_a_relative_symlink_is_the_picture_itself(source: Path, tmp_path: Path) -> None:
    original = source / "images" / "val" / "v.png"
    original.rename(source / "kept.png")
    original.symlink_to("../../kept.png")
    to_coco(source, "yolo", tmp_path / "out")
    assert not (tmp_path / "out" / "val2017" / "v.png").is_symlink()
    assert (tmp_path / "out" / "val2017" / "v.png").samefile(source / "kept.png")


def test_failing_link_names_the_option_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across_disks(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across_disks)
    with pytest.raises(UserError, match=r"--link hard .*Invalid cross-device link.*--link symlink or copy"):
        to_coco(source, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_interruption_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", interrupt)
    with pytest.raises(KeyboardInterrupt):
        to_coco(source, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_empty_folder_is_taken_and_another_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    to_coco(source, "yolo", tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "empty", source, source / "classes.txt"):
        with pytest.raises(UserError, match="is there and is no empty folder; delete it"):
            to_coco(source, "yolo", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_in_the_way_is_told_before_anything_is_read(source: Path, tmp_path: Path) -> None:
    (source / "labels" / "train" / "a.txt").write_text("broken")
    with pytest.raises(UserError, match="is no empty folder"):
        to_coco(source, "yolo", tmp_path)


def test_source_may_be_relative_where_a_list_is_absolute(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source / "train.txt").write_text(f"images/train/a.png\n{source}/images/train/b.png\n")
    to_coco(Path(source.name), "yolo", Path("out"), Options(link=Link.symlink))
    assert list(rows(tmp_path / "out", "train")) == ["a.png", "b.png"]
    assert (tmp_path / "out" / "train2017" / "a.png").is_file()


def test_same_source_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        to_coco(source, "yolo", tmp_path / name)
    for split in ("train", "val"):
        file = f"annotations/instances_{split}2017.json"
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_path_of_windows_is_named_as_such(tmp_path: Path) -> None:
    splits = {"train": {"a.png": []}, "val": {"sub\\b.png": []}}
    root = coco_folder(tmp_path / "coco", splits, ("ant",))
    convert(root, Format.coco, tmp_path / "letter", Format.yolo, Options())  # a letter like any other
    val = root / "val2017"
    (val / "sub").mkdir()
    (val / "sub\\b.png").rename(val / "sub/b.png")
    with pytest.raises(UserError, match=r"No such file .*, but .*sub/b.png is there: write / for"):
        convert(root, Format.coco, tmp_path / "out", Format.yolo, Options())


def test_rotation_mark_is_said_aloud_and_the_stored_size_counts(source: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(source / "images" / "val" / "v.png", exif=exif)
    said = to_coco(source, "yolo", tmp_path / "out")
    assert any(line.startswith("1 pictures are to be shown turned (EXIF)") for line in said)
    assert rows(tmp_path / "out", "val") == {"v.png": [("zebra", (75, 25, 50, 50), 0)]}


def test_two_folders_with_a_picture_of_the_same_name_are_refused(source: Path, tmp_path: Path) -> None:
    picture(source / "images" / "more" / "a.png")
    (source / "data.yaml").write_text(
        "{train: [images/train, images/more], val: images/val, names: [zebra, ant]}"
    )
    with pytest.raises(UserError, match=r"train/a\.png and .*more/a\.png are both a\.png in train; rename"):
        to_coco(source, "yolo", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coco", "yolo", "out", "--to", "voc", "--classes", "x"), "COCO annotations name their categories"),
        (("yolo", "none", "out"), "none is no folder"),
        (("yolo", "yolo", "out", "--to", "yolo"), "is yolo already; give another format with --to"),
        (("yolo", "yolo", "out", "--classes", "none.txt"), "none.txt: cannot be read"),
        (("coco", "yolo", "out"), "is coco already"),
        (("coco", "yolo", "out", "--to", "voc"), "train2017.json is missing; give a folder in COCO"),
    ],
)  # fmt: skip
def test_wrong_commands_end_with_an_error(
    source: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = command(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ")
    assert message in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_command_says_what_it_did(source: Path, tmp_path: Path) -> None:
    ended = command(tmp_path, "yolo", source.name, "out", "--link", "copy")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "train: 2 pictures (0 without boxes), 2 boxes" in ended.stdout
    assert "categories: 1 zebra, 2 ant" in ended.stdout


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "convert_dataset.py"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
