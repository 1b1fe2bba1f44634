"""The folder that a conversion makes, how it assigns pictures to splits, and the command line."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.convert import LINKS, Options, convert
from scripts.convert_dataset import main
from ssd.errors import UserError
from tests.conftest import ROOT
from tests.data.convert.folders import (
    YOLO_LINE,
    Row,
    coco_folder,
    rows,
    said_of,
    to_coco,
    voc_devkit,
    voc_object,
    yolo_folder,
)

pytestmark = pytest.mark.unit

MUTATIONS = 40
FRAGMENTS = b"|\0|\xff|-1|1e999|nan|<|&x;|/..|\n|\xe2\x80\xa8|{|0".split(b"|")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE, b=YOLO_LINE)


def dealt(folder: Path, count: int, fraction: float = 0.2, seed: int = 0) -> set[str]:
    """Convert a COCO set without validation annotations; return the pictures that became `val`."""
    out = folder / f"{count} {fraction} {seed}"
    pictures: dict[str, list[Row]] = {f"{number}.png": [("ant", (1, 1, 9, 9), 0)] for number in range(count)}
    source = coco_folder(folder / f"{out.name} coco", {"train": pictures}, ("ant",))
    said = convert(source, "coco", out, "voc", Options(fraction, seed))
    assert said_of(said, "no validation split in the source: split by file name")
    train, val = (
        set((out / "ImageSets" / "Main" / f"{split}.txt").read_text().split()) for split in ("train", "val")
    )
    assert len(train | val) == count == len(train) + len(val)
    return val


def test_set_without_validation_split_is_dealt_by_name_and_seed(tmp_path: Path) -> None:
    val = dealt(tmp_path, 30)
    assert val != dealt(tmp_path, 30, seed=1)
    assert len(val ^ dealt(tmp_path, 31)) <= 2  # adding a picture moves hardly any others
    for count, fraction, expected in ((10, 0.2, 2), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)):
        assert len(dealt(tmp_path, count, fraction)) == expected
    with pytest.raises(UserError, match=r"0.png is the only picture, so one split would be empty; add"):
        dealt(tmp_path, 1)
    for fraction in (0, 1, float("nan")):
        with pytest.raises(UserError, match=r"--val-fraction=.*: give a number between 0 and 1"):
            dealt(tmp_path, 3, fraction)


@pytest.mark.parametrize("link", LINKS)
def test_pictures_are_linked_or_copied_unchanged(source: Path, tmp_path: Path, link: str) -> None:
    original = source / "images" / "val" / "v.png"
    original.rename(source / "kept.png")
    original.symlink_to("../../kept.png")  # a hard link to this would point nowhere
    to_coco(source, "yolo", tmp_path / link, Options(link=link))
    made = tmp_path / link / "val2017" / "v.png"
    assert made.read_bytes() == original.read_bytes()
    assert made.is_symlink() == (link == "symlink")
    assert made.samefile(original) == (link != "copy")


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(18, "x"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_failing_or_interrupted_link_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: Any
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(LINKS, "hard", fail)
    with pytest.raises(raised):
        to_coco(source, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_empty_folder_is_taken_and_another_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    to_coco(source, "yolo", tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "empty", source, source / "classes.txt"):
        with pytest.raises(UserError, match="already exists and is not an empty folder; delete it"):
            to_coco(source, "yolo", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_rotation_mark_is_said_aloud_and_the_stored_size_counts(source: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(source / "images" / "val" / "v.png", exif=exif)
    said = to_coco(source, "yolo", tmp_path / "out")
    assert "v.png" in said_of(said, "pictures with EXIF rotation, boxes taken as unrotated: 1 ")
    assert rows(tmp_path / "out", "val") == {"v.png": [("zebra", (75, 25, 50, 50), 0)]}


def voc_for_damage(folder: Path) -> Path:
    dog = (voc_object("dog", (1, 2, 30, 40)),)
    return voc_devkit(folder, v=dog, a=dog)


def yolo_for_damage(folder: Path) -> Path:
    yolo_folder(folder, v=YOLO_LINE, a=YOLO_LINE)
    (folder / "one.txt").write_text("images/train/a.png\n")
    (folder / "data.yaml").write_text(
        "path: .\ntrain: one.txt\nval: images/val\nnames: {0: zebra, 1: ant}\nnc: 2\n"
    )
    return folder


@pytest.mark.parametrize(
    ("kind", "make", "files"),
    [
        ("voc", voc_for_damage, ("Annotations/a.xml", "ImageSets/Main/train.txt")),
        ("yolo", yolo_for_damage, ("labels/train/a.txt", "one.txt", "data.yaml", "images/train/a.png")),
    ],
)
def test_mutated_files_are_converted_or_refused_by_name(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], files: tuple[str, ...]
) -> None:
    source = make(tmp_path / kind)
    draw = random.Random(8)
    refusals = []
    for file in (source / name for name in files):
        text = file.read_bytes()
        for number in range(MUTATIONS):
            start = draw.randrange(len(text))
            end = draw.choice((start, start + 1, start + draw.randrange(20), len(text)))
            file.write_bytes(text[:start] + draw.choice(FRAGMENTS) + text[end:])
            try:
                to_coco(source, kind, tmp_path / f"{file.name}{number}")
            except (UserError, OSError) as error:
                refusals.append(str(error))
        file.write_bytes(text)
    assert len(refusals) > MUTATIONS // 2
    assert [text for text in refusals if str(source) not in text] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("coco empty out --to voc --classes x", "COCO annotations name their categories"),
        ("coco empty out --to voc", "instances_train2017.json is missing or not a file; see docs/DATA.md"),
        ("yolo none out", "none does not exist; give the folder"),
        ("yolo yolo out --classes none.txt", "none.txt"),
        ("coco yolo out", "yolo looks like yolo; give that instead of coco"),
        ("coco data.yaml out", "data.yaml looks like yolo; give that instead of coco"),
        ("yolo voc out", "voc looks like voc; give that instead of yolo"),
        ("voc coco out", "coco looks like coco; give that instead of voc"),
    ],
)
@pytest.mark.usefixtures("source")
def test_wrong_commands_end_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.yaml").write_text("{train: images, names: [ant]}")
    voc_devkit(tmp_path / "voc", a=())
    coco_folder(tmp_path / "coco", {"train": {"a.png": []}}, ("ant",))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["convert_dataset.py", *arguments.split()])
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        main()
    assert sorted(tmp_path.iterdir()) == before


def test_command_says_what_it_did(source: Path, tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "convert_dataset.py")
    ended = subprocess.run(
        [sys.executable, script, "yolo", source.name, "out", "--link", "copy"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "train: 2 pictures (0 without boxes), 2 boxes" in ended.stdout
    assert "categories: 1 zebra, 2 ant" in ended.stdout
