import copy
import math
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ssd.model import SSD300
from ssd.published import from_published
from tests.golden_inputs import forward_images, golden_arrays, published_weights

pytestmark = pytest.mark.unit


def meta_model(backbone: str, num_classes: int = 81) -> SSD300:
    """Make a model that has only shapes."""
    with torch.device("meta"):
        return SSD300(backbone, num_classes)


def batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


# Equivalence


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_outputs_equal_the_published_ones(backbone: str, memory_format: torch.memory_format):
    golden = golden_arrays(f"forward_{backbone}.npz")
    model = SSD300(backbone)
    model.load_state_dict(from_published(published_weights(backbone)))
    model.to(memory_format=memory_format)
    images = forward_images().contiguous(memory_format=memory_format)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        with torch.no_grad():
            outputs = model(images)
        for output, name in zip(outputs, ("loc", "conf"), strict=True):
            expected = golden[f"{name}_{mode}"]
            limit = 2e-4 * np.abs(expected).max()
            np.testing.assert_allclose(output[:, :, golden["index"]].numpy(), expected, rtol=0, atol=limit)
    np.testing.assert_allclose(model.backbone.bn1.running_mean, golden["bn_mean_after"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.backbone.bn1.running_var, golden["bn_var_after"], rtol=1e-5, atol=1e-6)


# Shapes and initial weights


@pytest.mark.parametrize(
    ("backbone", "millions"),
    [("resnet18", 14.0), ("resnet34", 20.0), ("resnet50", 22.9), ("resnet101", None), ("resnet152", None)],
)
def test_every_backbone_gives_8732_boxes_with_the_published_number_of_parameters(
    backbone: str, millions: float | None
):
    model, images = meta_model(backbone), torch.zeros(2, 3, 300, 300, device="meta")
    assert model.backbone(images).shape[2:] == (38, 38)
    offsets, logits = model(images)
    assert (offsets.shape, logits.shape) == ((2, 4, 8732), (2, 81, 8732))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert millions in (None, round(count / 1e6, 1))


def test_extra_blocks_and_heads_start_xavier_uniform_with_pytorchs_biases():
    torch.manual_seed(0)
    model = SSD300("resnet18")
    for name, parameter in model.named_parameters():
        if name.startswith("backbone.") or parameter.ndim == 1:
            continue
        outputs, inputs, height, width = parameter.shape
        bound = math.sqrt(6 / ((inputs + outputs) * height * width))
        assert 0.99 * bound < parameter.abs().max() <= bound
        assert abs(parameter.std() / (bound / math.sqrt(3)) - 1) < 0.02
    assert all(head.bias.any() for head in (*model.offset_heads, *model.logit_heads))
    assert all((norm.weight == 1).all() for norm in batchnorms(model.extra_blocks))


@pytest.mark.parametrize("shape", [(2, 3, 320, 320), (3, 300, 300), (2, 300, 300, 3), (2, 1, 300, 300)])
def test_images_of_another_shape_are_refused_by_it(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"N×3×300×300, got \({}\)".format(", ".join(map(str, shape)))):
        meta_model("resnet18")(torch.zeros(shape, device="meta"))


# ImageNet weights


def test_no_weights_download_nothing(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    SSD300()


def test_arguments_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"backbone='vgg16' is unknown; take one of resnet18, .*resnet152"):
        SSD300("vgg16")
    with pytest.raises(ValueError, match="num_classes=1: "):
        SSD300("resnet18", 1)


def test_named_weights_are_torchvisions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    resnet = torchvision.models.resnet18()
    downloaded = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"  # torch.hub looks here first
    downloaded.parent.mkdir(parents=True)
    torch.save(resnet.state_dict(), downloaded)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = SSD300("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(model.backbone.layer3[1].conv2.weight, resnet.layer3[1].conv2.weight)


def imagenet_file(backbone: str) -> dict[str, Tensor]:
    """Return weights like torchvision's oldest files, which lack num_batches_tracked."""
    state_dict = torchvision.models.get_model(backbone).state_dict()
    return {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def test_backbone_loads_torchvisions_layout_without_the_classifier():
    weights, model = imagenet_file("resnet18"), SSD300("resnet18")
    model.load_imagenet_backbone(weights)
    loaded = model.backbone.state_dict()
    assert {"conv1.weight", "layer3.1.bn2.running_var"} < {key for key in weights if key in loaded}
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded if key in weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (imagenet_file("resnet50"), r'same ResNet as model\.backbone: .*Unexpected .*"layer1\.2\.conv1'),
        (imagenet_file("resnet18") | {"stem.weight": torch.zeros(1)}, r"Unexpected .*stem\.weight"),
        (imagenet_file("resnet18") | {"bn1.bias": 0, 3: 0}, r"\"3\"\. .*\"bn1\.bias\", .*'int'"),
    ],
    ids=["another ResNet's", "an unknown key", "no tensor, and a key that is no text"],
)
def test_imagenet_weights_that_do_not_fit_are_refused_by_key(weights: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        SSD300("resnet18").load_imagenet_backbone(weights)
    assert "\n" not in str(error.value)


# Frozen BatchNorm


def test_frozen_batchnorms_use_and_keep_their_running_statistics_in_training():
    torch.manual_seed(0)
    model = SSD300("resnet18")
    model.load_state_dict(from_published(published_weights("resnet18")))
    images = forward_images()
    with torch.no_grad():
        expected = model.eval()(images)
    model.train()
    before = copy.deepcopy(model.state_dict())
    model.freeze_batchnorm()
    outputs = model(images)
    assert all(torch.equal(output, value) for output, value in zip(outputs, expected, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    outputs[1].sum().backward()
    assert all(norm.weight.grad.any() and norm.bias.grad.any() for norm in batchnorms(model))


def test_batchnorms_train_unless_frozen_and_stay_frozen_through_train_eval_and_a_wrapper():
    model = SSD300("resnet18").eval()
    assert all(norm.training for norm in batchnorms(model.train()))
    model.eval().freeze_batchnorm()
    assert not model.training
    wrapper = nn.Sequential(copy.deepcopy(model)).eval().train()
    assert wrapper[0].training
    assert wrapper[0].backbone.layer1.training
    assert not any(norm.training for norm in batchnorms(wrapper))
