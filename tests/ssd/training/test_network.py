from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from ssd.checkpoint import write
from ssd.config import Backbone, ConfigError, ModelConfig
from ssd.model import to_published
from ssd.training.network import build_network

pytestmark = pytest.mark.unit


def config(**given: object) -> ModelConfig:
    return ModelConfig(backbone=Backbone.resnet18, **given)


def assert_same(state: dict, other: dict) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_first_weights_follow_from_the_seed():
    first, again, other = (build_network(config(), 3, seed).state_dict() for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first["logit_heads.0.weight"], other["logit_heads.0.weight"])


def test_an_imagenet_backbone_comes_from_a_file(tmp_path: Path):
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "imagenet.pth")
    network = build_network(config(weights=str(tmp_path / "imagenet.pth")), 3, seed=0)
    assert torch.equal(network.state_dict()["backbone.layer3.1.conv2.weight"], resnet.layer3[1].conv2.weight)


def test_weights_that_do_not_exist_name_those_that_do():
    with pytest.raises(ConfigError, match=r"model\.weights=IMAGENET1K_V2: resnet18.*IMAGENET1K_V1"):
        build_network(config(weights="IMAGENET1K_V2"), 3, seed=0)


def test_weights_of_another_resnet_are_refused(tmp_path: Path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "imagenet.pth")
    with pytest.raises(ConfigError, match=r"model\.backbone"):
        build_network(config(weights=str(tmp_path / "imagenet.pth")), 3, seed=0)


def test_a_failed_download_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(ConfigError, match=r"no network.*model\.weights=FILE"):
        build_network(config(weights="IMAGENET1K_V1"), 3, seed=0)


@pytest.mark.parametrize("published", [True, False])
def test_a_detector_to_start_from_is_ours_or_a_published_one(published: bool, tmp_path: Path):
    trained = build_network(config(), 3, seed=9).state_dict()
    path = tmp_path / "x.pt"
    if published:
        torch.save({"model": to_published(trained)}, path)
    else:
        categories = {"ids": [1, 2], "names": ["a", "b"]}
        write(path, {"format": 1, "model": dict(trained), "categories": categories, "config": {}})
    assert_same(build_network(config(checkpoint=str(path)), 3, seed=0).state_dict(), trained)


def test_a_detector_of_other_classes_or_another_backbone_is_refused(tmp_path: Path):
    torch.save(to_published(build_network(config(), 3, seed=0).state_dict()), tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=r"tells 2 classes apart and the data set has 5"):
        build_network(config(checkpoint=str(tmp_path / "x.pt")), 6, seed=0)
    other = ModelConfig(backbone=Backbone.resnet34, checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(ConfigError, match=r"model\.backbone=resnet34: .*x\.pt is a resnet18"):
        build_network(other, 3, seed=0)


def test_frozen_batchnorm_stays_frozen_in_training():
    network = build_network(config(freeze_batchnorm=True), 3, seed=0).train()
    assert not network.backbone.bn1.training
    assert network.training
