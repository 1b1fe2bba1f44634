"""Damaged annotation files of any kind give a data set or our own error, never another exception."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ssd.errors import UserError
from tests.data.convert.folders import YOLO_LINE, to_coco, voc_devkit, voc_object, yolo_folder

pytestmark = pytest.mark.unit

MUTATIONS = 40
FRAGMENTS = b"|\0|\xff|-1|1e999|nan|<|&x;|/..|\n|\xe2\x80\xa8|{|0".split(b"|")


def voc(folder: Path) -> Path:
    return voc_devkit(folder, v=(voc_object("dog", (1, 2, 30, 40)),), a=(voc_object("dog", (1, 2, 30, 40)),))


def yolo(folder: Path) -> Path:
    yolo_folder(folder, v=YOLO_LINE, a=YOLO_LINE)
    (folder / "one.txt").write_text("images/train/a.png\n")
    (folder / "data.yaml").write_text(
        "path: .\ntrain: one.txt\nval: images/val\nnames: {0: zebra, 1: ant}\nnc: 2\n"
    )
    return folder


@pytest.mark.parametrize(
    ("make", "files"),
    [
        (voc, ("Annotations/a.xml", "ImageSets/Main/train.txt")),
        (yolo, ("labels/train/a.txt", "one.txt", "data.yaml", "images/train/a.png")),
    ],
)
def test_mutated_files_are_converted_or_refused_by_name(
    tmp_path: Path, make: Callable[[Path], Path], files: tuple[str, ...]
) -> None:
    source = make(tmp_path / make.__name__)
    draw = random.Random(8)
    refusals = []
    for file in (source / name for name in files):
        text = file.read_bytes()
        for number in range(MUTATIONS):
            start = draw.randrange(len(text))
            end = draw.choice((start, start + 1, start + draw.randrange(20), len(text)))
            file.write_bytes(text[:start] + draw.choice(FRAGMENTS) + text[end:])
            try:
                to_coco(source, make.__name__, tmp_path / f"{file.name}{number}")
            except UserError as error:
                refusals.append(str(error))
        file.write_bytes(text)
    assert len(refusals) > MUTATIONS // 2
    assert [text for text in refusals if str(source) not in text] == []
