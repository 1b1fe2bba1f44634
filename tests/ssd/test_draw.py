from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssd.categories import Categories
from ssd.draw import class_colour, draw_boxes, grid
from ssd.evaluation.pictures import Example, example_pictures

pytestmark = pytest.mark.unit


def test_a_box_is_drawn_in_its_classs_colour_and_its_inside_left_alone():
    picture = Image.new("RGB", (300, 300))
    draw_boxes(picture, [[50, 100, 250, 280]], [4], [""])
    assert picture.getpixel((51, 200)) == class_colour(4)
    assert picture.getpixel((150, 200)) == (0, 0, 0)


@pytest.mark.parametrize(
    "box", [[-50, -50, 400, 400], [290, 290, 310, 310], [400, 400, 500, 500], [9, 9, 9, 9]]
)
@pytest.mark.parametrize("size", [(300, 300), (1, 1), (3, 900)])
def test_boxes_off_the_picture_are_clipped_to_it(box: list[float], size: tuple[int, int]):
    picture = Image.new("RGB", size)
    draw_boxes(picture, [box], [1], ["a rather long name 0.99"])
    assert picture.size == size


def test_colours_of_neighbouring_labels_differ():
    colours = np.array([class_colour(label) for label in range(1, 81)])
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100


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
