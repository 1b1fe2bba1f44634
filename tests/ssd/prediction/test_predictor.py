from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssd.boxes import cxcywh_to_ltrb, default_boxes
from ssd.config import Precision
from ssd.errors import UserError
from ssd.image import normalize
from ssd.prediction.predictor import Predictor
from ssd.runtime import Runtime

pytestmark = pytest.mark.unit

RUNTIME = Runtime(torch.device("cpu"), Precision.fp32, tf32=False, channels_last=True)
BOXES_LTRB = cxcywh_to_ltrb(default_boxes())
ALL = frozenset((1, 2, 3))


class Seen(nn.Module):
    """A network that sees objects of given labels and scores exactly where given default boxes are."""

    def __init__(self, objects: Sequence[tuple[int, int, float]]) -> None:
        super().__init__()
        self.logits = torch.full((4, len(BOXES_LTRB)), -50.0)
        self.logits[0] = 0.0
        for box, label, score in objects:
            self.logits[label, box] = np.log(score / (1 - score))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert not self.training
        self.images = images
        return torch.zeros(len(images), 4, len(BOXES_LTRB)), self.logits.repeat(len(images), 1, 1)


def predictor(network: nn.Module, labels: frozenset[int] = ALL, max_detections: int = 200) -> Predictor:
    return Predictor(network, RUNTIME, 0.3, max_detections, labels)


def blank() -> Image.Image:
    return Image.new("RGB", (300, 300))


def test_boxes_are_in_pixels_of_the_picture_and_may_leave_it():
    box = int(BOXES_LTRB.sum(1).argmin())
    (found,) = predictor(Seen([(box, 2, 0.9)]))([blank()], [(900, 50)])
    expected = BOXES_LTRB[box].double().numpy() * [900, 50, 900, 50]
    assert expected.min() < 0
    np.testing.assert_allclose(found.boxes_ltrb_px, expected[None], rtol=1e-5)
    assert found.boxes_ltrb_px.dtype == np.float64
    assert (found.labels, found.scores) == ([2], pytest.approx([0.9]))


def test_of_several_pictures_each_is_scaled_by_its_own_size():
    first, second = predictor(Seen([(100, 1, 0.9)]))([blank(), blank()], [(300, 300), (600, 150)])
    np.testing.assert_allclose(second.boxes_ltrb_px, first.boxes_ltrb_px * [2, 0.5, 2, 0.5])


def test_scores_above_the_threshold_are_kept_best_first():
    (found,) = predictor(Seen([(0, 1, 0.31), (700, 2, 0.29), (1500, 3, 0.8)]))([blank()], [(300, 300)])
    assert found.labels == [3, 1]


def test_the_best_of_the_wanted_classes_count_not_of_all():
    objects = [(0, 1, 0.9), (700, 1, 0.8), (1500, 2, 0.7), (2200, 3, 0.6), (2900, 2, 0.5)]
    (found,) = predictor(Seen(objects), labels=frozenset((2, 3)), max_detections=2)([blank()], [(300, 300)])
    assert found.labels == [2, 3]


def test_the_network_sees_the_pictures_as_it_was_trained():
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (2, 300, 300, 3), dtype=np.uint8)
    network = Seen([])
    predictor(network)([Image.fromarray(each) for each in values], [(1, 1), (1, 1)])
    assert torch.equal(network.images, normalize(values / np.float32(255)))
    assert network.images.is_contiguous(memory_format=torch.channels_last)


def test_a_picture_without_objects_gives_arrays_of_no_rows():
    (found,) = predictor(Seen([]))([blank()], [(300, 300)])
    assert found.boxes_ltrb_px.shape == (0, 4)
    assert (found.scores, found.labels) == ([], [])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error_not_an_empty_picture(value: float):
    network = Seen([])
    network.logits[1, 7] = value
    with pytest.raises(UserError, match=r"not finite in fp32; give runtime\.precision=fp32"):
        predictor(network)([blank()], [(300, 300)])
