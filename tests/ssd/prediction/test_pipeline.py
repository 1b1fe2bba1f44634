import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssd.prediction.find import PictureFile, find_pictures
from ssd.prediction.pipeline import UnreadPicture, in_order, predict
from ssd.prediction.predictor import Found

pytestmark = pytest.mark.unit

PICTURES = 11


@pytest.fixture
def files(tmp_path: Path) -> list[PictureFile]:
    """Pictures of different brightness and size, two of them broken."""
    for number in range(PICTURES):
        Image.new("L", (20 + number, 10), 10 * number).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "03.png").write_bytes(b"no picture")
    (tmp_path / "10.png").write_bytes(b"")
    return find_pictures([str(tmp_path)], Path("elsewhere"))


def brightness(squashed: Sequence[Image.Image], sizes_px: Sequence[tuple[int, int]]) -> list[Found]:
    """Stand in for a network: the picture's brightness is the score of a box of its size."""
    assert all(picture.size == (300, 300) for picture in squashed)
    return [
        Found(np.array([[0.0, 0.0, *size]]), [float(np.asarray(picture).max())], [1])
        for picture, size in zip(squashed, sizes_px, strict=True)
    ]


def described(file: PictureFile, picture: Image.Image, found: Found) -> tuple[Any, ...]:
    return file.name, picture.size, found.scores, found.boxes_ltrb_px.tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 50])
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_batches_and_threads_change_nothing(batch_size: int, threads: int, files: list[PictureFile]):
    outcomes = list(predict(files, brightness, batch_size, threads, described))
    assert [each for each in outcomes if not isinstance(each, UnreadPicture)] == [
        (f"{number:02d}.png", (20 + number, 10), [10.0 * number], [[0, 0, 20 + number, 10]])
        for number in range(PICTURES)
        if number not in (3, 10)
    ]
    unread = [each for each in outcomes if isinstance(each, UnreadPicture)]
    assert [each.file.name for each in unread] == ["03.png", "10.png"]
    assert all(str(each.file.path) in each.reason for each in unread)


def test_an_error_of_the_work_ends_it(files: list[PictureFile]):
    def fails(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(predict(files, brightness, 2, 2, fails))


def in_order_list(work: Callable[[int], Any], items: Iterator[int] | range, ahead: int) -> list[Any]:
    with ThreadPoolExecutor(4) as pool:
        return list(in_order(pool, work, items, ahead))


def test_a_slow_first_item_is_waited_for():
    second_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_is_done.wait(10)
        second_is_done.set()
        return item

    assert in_order_list(work, range(9), ahead=4) == list(range(9))


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_than_so_many_items_are_taken_before_results_are(ahead: int):
    taken = []

    def items() -> Iterator[int]:
        for item in range(8):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        for done, _ in enumerate(in_order(pool, abs, items(), ahead)):
            assert len(taken) <= done + ahead
    assert len(taken) == 8
