import os
import pickle
from pathlib import Path

import pytest
import torch

from ssd.checkpoint import CheckpointError, write
from ssd.model import SSD300
from ssd.published import load_weights, to_published

pytestmark = pytest.mark.unit


class Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_a_malicious_file_does_not_run(tmp_path: Path):
    for name, save in (("torch.pt", torch.save), ("plain.pt", lambda x, p: p.write_bytes(pickle.dumps(x)))):
        save({"format": 1, "model": Payload(tmp_path / "touched")}, tmp_path / name)
        with pytest.raises(CheckpointError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "touched").exists()


def test_another_programs_checkpoint_is_refused(tmp_path: Path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="neither a checkpoint of this trainer nor a published SSD300"):
        load_weights(tmp_path / "other.pt")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_the_backbone_follows_from_the_keys(backbone: str, tmp_path: Path):
    network = SSD300(backbone, num_classes=3)
    torch.save(to_published(network.state_dict()), tmp_path / "p.pt")
    categories = {"ids": [1, 2], "names": ["a", "b"]}
    write(
        tmp_path / "ours.pt",
        {"format": 1, "model": dict(network.state_dict()), "categories": categories, "config": {}},
    )
    for name in ("p.pt", "ours.pt"):
        weights = load_weights(tmp_path / name)
        assert (weights.backbone, weights.num_classes) == (backbone, 3)
        restored = weights.network().state_dict()
        assert all(torch.equal(restored[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "module.1."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_published_checkpoint_is_read_with_its_number_of_classes(
    prefix: str, wrapped: bool, tmp_path: Path
):
    network = SSD300("resnet18", num_classes=7)
    published = {prefix + key: value for key, value in to_published(network.state_dict()).items()}
    torch.save({"epoch": 3, "model": published} if wrapped else published, tmp_path / "p.pt")
    weights = load_weights(tmp_path / "p.pt")
    assert (weights.num_classes, weights.categories, weights.config) == (7, None, None)
    for key, value in network.state_dict().items():
        assert torch.equal(weights.model[key], value)
