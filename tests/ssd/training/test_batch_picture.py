"""The picture of a training batch: every ground-truth box is drawn, and once."""

import pytest
import torch
from PIL import Image

from ssd.batches import TrainBatch
from ssd.boxes import default_boxes, encode_offsets, match
from ssd.categories import Categories
from ssd.training import batch_picture

pytestmark = pytest.mark.unit

CATEGORIES = Categories(ids=(7, 9), names=("tree", "house"))


def drawn(boxes_ltrb_px: list[list[float]], labels: list[int], patch: pytest.MonkeyPatch) -> list[str]:
    """Return the names that are drawn for an image with these boxes."""
    boxes = default_boxes()
    matched, target = match(torch.tensor(boxes_ltrb_px) / 300, torch.tensor(labels), boxes)
    offsets = torch.where(target[:, None] > 0, encode_offsets(matched, boxes), 0.0)
    names: list[str] = []

    def record(_picture: Image.Image, boxes_px: list[list[float]], _labels: list[int], texts: list[str]):
        assert len(boxes_px) == len(texts)
        names.extend(texts)

    patch.setattr(batch_picture, "draw_boxes", record)
    batch = TrainBatch(torch.zeros(1, 3, 300, 300), offsets[None], target[None])
    batch_picture.batch_picture(batch, CATEGORIES)
    return sorted(names)


@pytest.mark.parametrize("edge_px", [10.0, 10.25, 10.4999, 10.5, 10.5001, 10.75])
def test_a_box_is_drawn_once_wherever_its_edges_lie(edge_px: float, monkeypatch: pytest.MonkeyPatch):
    box = [edge_px, edge_px + 30, edge_px + 120, edge_px + 160]
    assert drawn([box], [1], monkeypatch) == ["tree"]


def test_near_boxes_and_boxes_of_two_labels_at_one_place_are_all_drawn(monkeypatch: pytest.MonkeyPatch):
    boxes = [[10.5, 10, 80, 80], [11.5, 10, 80, 80], [150, 150, 250, 260], [150, 150, 250, 258]]
    assert drawn(boxes, [1, 1, 2, 1], monkeypatch) == ["house", "tree", "tree", "tree"]
