from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from ssd.categories import COCO, Categories
from ssd.checkpoint import write
from ssd.config import Backbone, ModelConfig
from ssd.errors import UserError
from ssd.published import to_published
from ssd.training.network import build_network

pytestmark = pytest.mark.unit

CATEGORIES = Categories((1, 2), ("a", "b"))


def config(**given: object) -> ModelConfig:
    return ModelConfig(backbone=Backbone.resnet18, **given)


def assert_same(state: dict, other: dict) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_first_weights_follow_from_the_seed():
    first, again, other = (build_network(config(), CATEGORIES, seed)[0].state_dict() for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first["logit_heads.0.weight"], other["logit_heads.0.weight"])


def test_an_imagenet_backbone_comes_from_a_file(tmp_path: Path):
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "imagenet.pth")
    network = build_network(config(weights=str(tmp_path / "imagenet.pth")), CATEGORIES, seed=0)[0]
    assert torch.equal(network.state_dict()["backbone.layer3.1.conv2.weight"], resnet.layer3[1].conv2.weight)


def test_weights_that_do_not_exist_name_those_that_do():
    with pytest.raises(UserError, match=r"model\.weights=IMAGENET1K_V2: resnet18.*IMAGENET1K_V1"):
        build_network(config(weights="IMAGENET1K_V2"), CATEGORIES, seed=0)[0]


def test_weights_of_another_resnet_are_refused(tmp_path: Path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "imagenet.pth")
    with pytest.raises(UserError, match=r"model\.backbone"):
        build_network(config(weights=str(tmp_path / "imagenet.pth")), CATEGORIES, seed=0)[0]


def test_a_failed_download_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"no network.*model\.weights=FILE"):
        build_network(config(weights="IMAGENET1K_V1"), CATEGORIES, seed=0)[0]


def test_a_file_that_holds_no_weights_is_refused_by_the_key(tmp_path: Path):
    (tmp_path / "README.md").write_text("# words")
    with pytest.raises(UserError, match=r"^model\.weights=.*README\.md: checkpoint .* can't be read"):
        build_network(config(weights=str(tmp_path / "README.md")), CATEGORIES, seed=0)


def save_detector(
    path: Path, categories: Categories, published: bool, seed: int = 9
) -> dict[str, torch.Tensor]:
    trained = dict(build_network(config(), categories, seed)[0].state_dict())
    if published:
        torch.save({"model": to_published(trained)}, path)
    else:
        known = {"ids": list(categories.ids), "names": list(categories.names)}
        write(path, {"format": 1, "model": trained, "categories": known, "config": {}})
    return trained


@pytest.mark.parametrize("published", [True, False])
def test_a_detector_to_start_from_is_ours_or_a_published_one(published: bool, tmp_path: Path):
    trained = save_detector(tmp_path / "x.pt", CATEGORIES, published)
    network, origin = build_network(config(checkpoint=str(tmp_path / "x.pt")), CATEGORIES, seed=0)
    assert_same(network.state_dict(), trained)
    assert origin == str(tmp_path / "x.pt")


OTHERS = (Categories((1,), ("a",)), Categories((1, 2), ("a", "x")), Categories((1, 2), ("b", "a")))


@pytest.mark.parametrize("others", OTHERS)
def test_a_detector_of_other_classes_gets_new_class_heads_and_says_so(others: Categories, tmp_path: Path):
    trained = save_detector(tmp_path / "x.pt", CATEGORIES, published=False)
    network, origin = build_network(config(checkpoint=str(tmp_path / "x.pt")), others, seed=3)
    fresh = build_network(config(), others, seed=3)[0].state_dict()
    for key, value in network.state_dict().items():
        assert torch.equal(value, (fresh if key.startswith("logit_heads.") else trained)[key])
    assert f"class heads, which are new: it tells 2 classes apart, and the {len(others.ids)}" in origin


def test_a_published_checkpoint_of_81_classes_knows_cocos(tmp_path: Path):
    trained = save_detector(tmp_path / "x.pt", COCO, published=True)
    network, _ = build_network(config(checkpoint=str(tmp_path / "x.pt")), COCO, seed=3)
    assert_same(network.state_dict(), trained)
    others = Categories(COCO.ids, (*COCO.names[:-1], "unheard of"))
    _, origin = build_network(config(checkpoint=str(tmp_path / "x.pt")), others, seed=3)
    assert "class heads, which are new" in origin


def test_a_detector_of_another_backbone_is_refused(tmp_path: Path):
    save_detector(tmp_path / "x.pt", CATEGORIES, published=True)
    other = ModelConfig(backbone=Backbone.resnet34, checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match=r"model\.backbone=resnet34: .*x\.pt is a resnet18"):
        build_network(other, CATEGORIES, seed=0)


def test_frozen_batchnorm_stays_frozen_in_training():
    network = build_network(config(freeze_batchnorm=True), CATEGORIES, seed=0)[0].train()
    assert not network.backbone.bn1.training
    assert network.training
