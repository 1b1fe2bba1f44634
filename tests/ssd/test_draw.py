from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ssd.evaluation.pictures import Example, example_pictures

from ssd.categories import Categories
from ssd.image import class_colour, draw_boxes, grid

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("ground", ["black", "white", class_colour(4)])
def test_a_box_is_drawn_in_its_classs_colour_between_dark_rims_and_its_inside_left_alone(ground: object):
    picture = Image.new("RGB", (300, 300), ground)
    draw_boxes(picture, [[50, 100, 250, 280]], [4], [""])
    assert [picture.getpixel((x, 200)) for x in (49, 50, 51)] == [(0, 0, 0), class_colour(4), (0, 0, 0)]
    assert (
        picture.getpixel((48, 200))
        == picture.getpixel((150, 200))
        == Image.new("RGB", (1, 1), ground).getpixel((0, 0))
    )


@pytest.mark.parametrize(("side", "line"), [(100, 1), (300, 1), (1000, 3), (6000, 15)])
def test_lines_and_plates_grow_with_the_picture_but_less(side: int, line: int):
    picture = Image.new("RGB", (side, side))
    box = [side // 4, side // 2, side * 3 // 4, side * 3 // 4]
    draw_boxes(picture, [box], [4], ["bird"])
    coloured = (np.asarray(picture) == class_colour(4)).all(axis=2)
    assert coloured[side * 5 // 8, : side // 2].sum() == line
    plate = coloured[: side // 2, side // 4 + 1].sum()  # the column of its left edge, left of the text
    assert 12 <= plate <= max(16, side / 30)


def test_of_crossing_boxes_the_better_one_is_on_top():
    picture = Image.new("RGB", (300, 300))
    draw_boxes(picture, [[50, 100, 250, 280], [100, 50, 200, 290]], [1, 2], ["", ""])
    assert picture.getpixel((100, 100)) == class_colour(1)


def test_plates_of_boxes_at_one_place_do_not_cover_each_other():
    picture = Image.new("RGB", (640, 480))
    draw_boxes(picture, [[200, 200, 400, 300]] * 4, [1, 2, 3, 4], ["dog 0.98"] * 4)
    pixels = np.asarray(picture).reshape(-1, 3)
    areas = [int((pixels == class_colour(label)).all(axis=1).sum()) for label in (1, 2, 3, 4)]
    assert min(areas[1:]) > 300
    assert max(areas[1:]) < min(areas[1:]) * 1.5  # the first has its box's line besides


@pytest.mark.parametrize(
    "box", [[-50, -50, 400, 400], [290, 290, 310, 310], [400, 400, 500, 500], [9, 9, 9, 9]]
)
@pytest.mark.parametrize("size", [(300, 300), (1, 1), (3, 900)])
def test_boxes_off_the_picture_are_clipped_to_it(box: list[float], size: tuple[int, int]):
    picture = Image.new("RGB", size)
    draw_boxes(picture, [box], [1], ["a rather long name 0.99"])
    assert picture.size == size


def test_colours_of_neighbouring_labels_differ_much_and_no_two_are_the_same():
    colours = np.array([class_colour(label) for label in range(1, 81)])
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100
    assert len(np.unique(colours, axis=0)) == 80


def test_pictures_of_one_size_are_joined_row_by_row():
    pictures = [Image.new("RGB", (2, 3), colour) for colour in ("red", "lime", "blue", "red", "lime")]
    sheet = grid(pictures, columns=4)
    assert sheet.size == (8, 6)
    assert sheet.getpixel((2, 3)) == (255, 255, 255)
    assert sheet.getpixel((4, 0)) == (0, 0, 255)


def test_an_example_shows_its_own_confident_detections(tmp_path: Path):
    Image.new("RGB", (100, 80)).save(tmp_path / "x.png")
    example = Example(5, str(tmp_path / "x.png"), np.array([[10.0, 10, 40, 40]]), np.array([1]))
    detections = np.array(
        [
            [5, 50, 20, 30, 30, 0.9, 7],  # shown
            [5, 10, 20, 30, 30, 0.2, 7],  # not confident
            [6, 10, 20, 30, 30, 0.9, 7],  # another image's
        ]
    )
    picture = example_pictures([example], detections, Categories((7,), ("bird",)))["x"]
    found = np.asarray(picture)[22:, 106:]
    coloured = (np.abs(found.astype(int) - class_colour(1)).sum(axis=2) < 60).nonzero()
    assert coloured[1].min() >= 49
