"""Pictures in, boxes in pixels out. What predict.py finds is the same: tests/test_predict.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssd.boxes import cxcywh_to_ltrb, default_boxes
from ssd.categories import Categories
from ssd.detector import Detector, Prediction
from ssd.errors import UserError
from ssd.image import normalize, read_picture

pytestmark = pytest.mark.unit

CATEGORIES = Categories((18, 90, 7), ("dog", "tooth brush", "cow"))
BOXES_LTRB = cxcywh_to_ltrb(default_boxes())


class Seen(Detector):
    """Sees objects of given labels and scores exactly where given default boxes are."""

    def __init__(self, objects: Sequence[tuple[int, int, float]]) -> None:
        super().__init__("resnet18", 4, CATEGORIES)
        self.logits = torch.full((4, len(BOXES_LTRB)), -50.0)
        self.logits[0] = 0.0
        for box, label, score in objects:
            self.logits[label, box] = np.log(score / (1 - score))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        self.images = images
        return torch.zeros(len(images), 4, len(BOXES_LTRB)), self.logits.repeat(len(images), 1, 1)


@pytest.fixture(scope="module")
def detector() -> Detector:
    """Random weights with logits so far apart that all classes are found everywhere."""
    torch.manual_seed(0)
    detector = Detector("resnet18", 4, CATEGORIES)
    for head in detector.logit_heads:
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.normal_(head.bias, std=0.2)
    return detector.eval()


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one: Prediction, other: Prediction, rtol: float = 0) -> None:
    """rtol: for what another batch size rounds otherwise."""
    np.testing.assert_allclose(one.boxes_ltrb_px, other.boxes_ltrb_px, rtol=rtol, atol=1000 * rtol)
    np.testing.assert_allclose(one.scores, other.scores, rtol=rtol)
    assert (one.labels.tolist(), one.names) == (other.labels.tolist(), other.names)


# What is a picture


def test_a_path_a_pil_picture_and_an_array_are_the_same_picture(detector: Detector, tmp_path: Path):
    values = noise(90, 60)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "lying.png", exif=exif)
    found = detector.predict(tmp_path / "a.png")
    assert found.boxes_ltrb_px.shape == (len(found.names), 4)
    assert len(found.names) > 20
    transparent = picture.convert("RGBA")
    reversed_twice = np.ascontiguousarray(values[:, :, ::-1])[:, :, ::-1]
    opened = Image.open(tmp_path / "a.png")
    for same in (str(tmp_path / "a.png"), picture, transparent, values, reversed_twice, opened):
        assert_same(detector.predict(same), found)
    upright = detector.predict(np.rot90(values, -1))
    assert_same(detector.predict(Image.open(tmp_path / "lying.png")), upright)
    assert_same(detector.predict(tmp_path / "lying.png"), upright)


def test_a_list_gives_what_its_pictures_give_one_by_one(detector: Detector):
    pictures = [noise(*size) for size in ((90, 60), (1, 1), (40, 200), (300, 300), (7, 5))]
    alone = [detector.predict(each, threshold=0.01) for each in pictures]
    assert not detector.predict([])
    for several in (pictures, tuple(pictures), iter(pictures)):
        found = detector.predict(several, threshold=0.01, batch_size=1)
        for one, other in zip(found, alone, strict=True):
            assert_same(one, other)
    for one, other in zip(detector.predict(pictures, batch_size=2), alone, strict=True):
        best = np.argsort(-one.scores, kind="stable")
        assert (best == np.arange(len(best))).all()
        np.testing.assert_allclose(one.scores, other.scores[: len(best)], atol=1e-4)


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (np.zeros((5, 7, 3)), r"pictures\[0\] is an array float64 5×7×3; give uint8 H×W×3, RGB"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"pictures\[0\] is an array uint8 2×5×7×3;"),
        (np.zeros((0, 7, 3), np.uint8), r"pictures\[0\] is an array uint8 0×7×3;"),
        ([np.zeros((5, 7, 3), np.uint8)] * 8 + [None], r"pictures\[8\] is of type NoneType; "),
        (torch.zeros(3, 5, 7), r"pictures\[0\] is of type Tensor; give a path, a PIL picture or a uint8"),
        (["gone.jpg"], r"^gone\.jpg does not exist$"),
        ("", "^'' does not exist$"),
        ("{folder}", "is no regular file$"),
        ("{folder}/text.jpg", r"text\.jpg is no picture of a known kind"),
        (Image.new("F", (5, 7)), r"pictures\[0\]: its 32 bits a channel"),
        (Image.new("RGB", (0, 7)), r"pictures\[0\] has no pixels"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(
    pictures: object, reason: str, detector: Detector, tmp_path: Path
):
    (tmp_path / "text.jpg").write_text("no picture")
    given = pictures.format(folder=tmp_path) if isinstance(pictures, str) else pictures
    with pytest.raises(UserError, match=reason) as error:
        detector.predict(given)
    assert "\n" not in str(error.value)


# What is found


def test_boxes_are_in_pixels_of_each_picture_and_may_leave_it():
    box = int(BOXES_LTRB.sum(1).argmin())
    sizes = [(900, 50), (300, 300)]
    found = Seen([(box, 2, 0.9)]).predict([noise(*size) for size in sizes])
    for size, prediction in zip(sizes, found, strict=True):
        expected = BOXES_LTRB[box].double().numpy() * np.tile(size, 2)
        assert expected.min() < 0
        np.testing.assert_allclose(prediction.boxes_ltrb_px, expected[None], rtol=1e-5)
        assert (prediction.labels.tolist(), prediction.names) == ([2], ["tooth brush"])
        assert prediction.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(
    ("objects", "options", "labels"),
    [
        ([], {}, []),
        ([(0, 1, 0.31), (700, 2, 0.29), (1500, 3, 0.8)], {}, [3, 1]),  # above the threshold, best first
        ([(0, 1, 0.31), (700, 2, 0.29), (1500, 3, 0.8)], {"classes": "dog", "threshold": 0.2}, [1]),
        (
            # The best of the wanted classes count, not of all.
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


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_network_sees_the_pictures_as_it_was_trained(layout: torch.memory_format):
    pictures = [noise(300, 300), noise(300, 300)[::-1]]
    network = Seen([]).to(memory_format=layout)
    network.predict(pictures)
    assert torch.equal(network.images, normalize(np.stack(pictures) / np.float32(255)))
    assert network.images.is_contiguous(memory_format=layout)


def test_a_network_in_training_trains_on_afterwards():
    network = Seen([]).train()
    statistics = network.backbone.bn1.running_mean.clone()
    network.predict(noise(9, 9))
    assert network.training
    assert network.backbone.bn1.training
    assert torch.equal(network.backbone.bn1.running_mean, statistics)
    with pytest.raises(UserError):
        network.predict("gone.jpg")
    assert network.training


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error_not_an_empty_picture(value: float):
    network = Seen([])
    network.logits[1, 7] = value
    with pytest.raises(
        UserError, match=r"not finite in fp32; give precision=fp32 \(runtime\.precision=fp32\)"
    ):
        network.predict(noise(9, 9))


def test_boxes_are_drawn_on_a_copy(tmp_path: Path):
    values = np.zeros((300, 300, 3), np.uint8)
    picture, path = Image.fromarray(values), tmp_path / "a.png"
    picture.save(path)
    drawn = [Seen([(1500, 1, 0.9)]).predict(each).draw() for each in (path, picture, values)]
    assert not values.any()
    assert not np.asarray(picture).any()
    assert not np.asarray(read_picture(path)).any()
    assert np.asarray(drawn[0]).any()
    assert drawn[0] == drawn[1] == drawn[2]
