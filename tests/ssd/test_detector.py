"""Pictures in, boxes in pixels out. tests/test_predict.py shows that predict.py finds the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssd.categories import Categories
from ssd.detector import Detector, Prediction
from ssd.errors import UserError

pytestmark = pytest.mark.unit

CATEGORIES = Categories((18, 90, 7), ("dog", "tooth brush", "cow"))


class Seen(Detector):
    """A detector that finds objects of the given labels and scores at exactly the given default boxes."""

    def __init__(self, objects: Sequence[tuple[int, int, float]]) -> None:
        super().__init__("resnet18", 4, CATEGORIES)
        self.logits = torch.full((4, 8732), -50.0)
        self.logits[0] = 0.0
        for box, label, score in objects:
            self.logits[label, box] = np.log(score / (1 - score))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        return torch.zeros(len(images), 4, 8732), self.logits.repeat(len(images), 1, 1)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Make random weights whose logits are so far apart that all classes are found everywhere."""
    torch.manual_seed(0)
    detector = Detector("resnet18", 4, CATEGORIES)
    for head in detector.logit_heads:
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.normal_(head.bias, std=0.2)
    return detector.eval()


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one: Prediction, other: Prediction) -> None:
    assert np.array_equal(one.boxes_ltrb_px, other.boxes_ltrb_px)
    assert np.array_equal(one.scores, other.scores)
    assert (one.labels.tolist(), one.names) == (other.labels.tolist(), other.names)


# What counts as a picture


def test_a_path_a_pil_picture_and_an_array_are_the_same_picture(detector: Detector, tmp_path: Path):
    values, exif = noise(90, 60), Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(values)
    picture.save(tmp_path / "lying.png", exif=exif)
    upright = np.rot90(values, -1)
    found = detector.predict(upright)
    assert found.boxes_ltrb_px.shape == (len(found.names), 4)
    assert len(found.names) > 20
    paths = [tmp_path / "lying.png", str(tmp_path / "lying.png")]
    for same in (*paths, Image.open(paths[0]), Image.fromarray(upright).convert("RGBA")):
        assert_same(detector.predict(same), found)


def test_several_pictures_give_a_list_in_their_order(detector: Detector):
    pictures = [noise(*size) for size in ((90, 60), (1, 1), (40, 200))]
    alone = [detector.predict(each) for each in pictures]
    assert not detector.predict([])
    for several in (pictures, tuple(pictures), iter(pictures)):
        for one, other in zip(detector.predict(several, batch_size=1), alone, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (np.zeros((5, 7, 3)), r"^pictures\[0\] is an array float64 5×7×3; give uint8 H×W×3, RGB"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"^pictures\[0\] is an array uint8 2×5×7×3;"),
        (
            [np.zeros((5, 7, 3), np.uint8)] * 8 + [None],
            r"^pictures\[8\] can't be read as a picture .*NoneType",
        ),
        (["gone.jpg"], r"^gone\.jpg can't be read as a picture"),
        (Image.new("F", (5, 7)), r"^pictures\[0\] can't be read .*32 bits"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(pictures: object, reason: str, detector: Detector):
    with pytest.raises(UserError, match=reason):
        detector.predict(pictures)


# What is found


@pytest.mark.parametrize(
    ("objects", "options", "labels"),
    [
        ([], {}, []),
        ([(0, 1, 0.31), (700, 2, 0.29), (1500, 3, 0.8)], {}, [3, 1]),  # above the threshold, best first
        ([(0, 1, 0.31), (700, 2, 0.29), (1500, 3, 0.8)], {"classes": "dog", "threshold": 0.2}, [1]),
        (
            # max_detections counts only the wanted classes.
            [(0, 1, 0.9), (700, 1, 0.8), (1500, 2, 0.7), (2200, 3, 0.6), (2900, 2, 0.5)],
            {"classes": ["cow", "tooth brush"], "max_detections": 2},
            [2, 3],
        ),
    ],
)
def test_which_detections_are_kept(objects: list[tuple[int, int, float]], options: dict, labels: list[int]):
    found = Seen(objects).predict(noise(300, 300), **options)
    assert found.labels.tolist() == labels
    assert found.boxes_ltrb_px.shape == (len(labels), 4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": 40}, "^threshold=40: give a score from 0 to below 1"),
        ({"threshold": np.nan}, "^threshold=nan: "),
        ({"max_detections": -1}, "^max_detections=-1: give at least 1"),
        ({"batch_size": 0}, "^batch_size=0: give at least 1"),
        ({"classes": ["dogs"]}, "^classes: the checkpoint knows no 'dogs'; give dog"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name(options: dict, reason: str):
    with pytest.raises(UserError, match=reason):
        Seen([]).predict([], **options)


def test_a_network_in_training_trains_on_afterwards():
    network = Seen([]).train()
    network.predict(noise(9, 9))
    assert network.training
    with pytest.raises(UserError):
        network.predict("gone.jpg")
    assert network.training


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error_not_an_empty_picture(value: float):
    network = Seen([])
    network.logits[1, 7] = value
    with pytest.raises(UserError, match=r"not finite in fp32; give .*runtime\.precision=fp32"):
        network.predict(noise(9, 9))


def test_boxes_are_drawn_on_a_copy(tmp_path: Path):
    values = np.zeros((300, 300, 3), np.uint8)
    picture, path = Image.fromarray(values), tmp_path / "a.png"
    picture.save(path)
    drawn = [Seen([(1500, 1, 0.9)]).predict(each).draw() for each in (path, picture, values)]
    assert np.asarray(drawn[0]).any()
    assert drawn[0] == drawn[1] == drawn[2]
    assert not any(np.asarray(each).any() for each in (values, picture, Image.open(path)))
