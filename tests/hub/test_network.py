import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssd import download
from ssd.categories import COCO
from ssd.checkpoint import CheckpointError, write
from ssd.errors import UserError
from ssd.hub.network import HubSSD300, nvidia_ssd, ssd300
from ssd.model import SSD300
from ssd.published import to_published
from tests.golden_inputs import forward_images, golden_arrays
from tests.hub.checkpoints import (
    HEAD_SCALE,
    Payload,
    golden_weights,
    our_checkpoint,
    published_checkpoint,
    saved,
)
from tests.web_site import serving

pytestmark = pytest.mark.unit

NAMES = ("cell", "platelet")


def nvidia(weights: object = None, pretrained: bool = True, model_math: str = "fp32") -> HubSSD300:
    return nvidia_ssd(pretrained, model_math, False, weights)


@pytest.fixture(scope="module")
def small() -> SSD300:
    """A network of ours with statistics that are not BatchNorm's initial ones."""
    torch.manual_seed(0)
    network = SSD300("resnet18", len(NAMES) + 1)
    with torch.no_grad():
        network(forward_images())
    return network


@pytest.fixture(scope="module")
def ours(small: SSD300, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "best.pt"
    write(path, our_checkpoint(small, list(NAMES)))
    return path


def outputs(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Offsets and logits in one tensor, of evaluation."""
    with torch.no_grad():
        return torch.cat(network.eval()(images), dim=1)


# Published weights


def test_published_weights_give_the_golden_outputs(tmp_path: Path):
    path = tmp_path / "nvidia.pt"
    path.write_bytes(published_checkpoint(golden_weights(), prefix="module.1."))
    network = nvidia(path)
    golden = golden_arrays("forward_resnet50.npz")
    with torch.no_grad():
        found = network.eval()(forward_images())
    for output, name in zip(found, ("loc_eval", "conf_eval"), strict=True):
        expected = golden[name] * HEAD_SCALE
        limit = 2e-4 * np.abs(expected).max()
        np.testing.assert_allclose(output[:, :, golden["index"]], expected, rtol=0, atol=limit)
    assert network.category_names == COCO.names


def test_published_weights_of_another_network_make_that_network(small: SSD300, tmp_path: Path):
    torch.save(to_published(small.state_dict()), tmp_path / "p.pt")
    network = nvidia(tmp_path / "p.pt")
    assert torch.equal(outputs(network, forward_images()), outputs(small, forward_images()))
    assert network.category_names == ("class 1", "class 2")


def test_the_environment_variable_names_the_weights(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", str(ours))
    assert nvidia().category_names == NAMES


def test_weights_given_come_before_the_environment_variable(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", "/gone.pt")
    assert nvidia(ours).category_names == NAMES


def test_without_weights_nothing_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", "/gone.pt")
    network = nvidia(pretrained=False)
    assert list(network.state_dict()) == list(SSD300("resnet50").state_dict())
    assert network.category_names == COCO.names


# Our checkpoints


def test_our_checkpoint_makes_the_network_that_it_is_of(ours: Path, small: SSD300):
    for network in (nvidia(ours), ssd300(None, None, ours), ssd300("resnet18", 3, ours.as_uri())):
        assert network.category_names == NAMES
        assert list(network.state_dict()) == list(small.state_dict())
        assert torch.equal(outputs(network, forward_images()), outputs(small, forward_images()))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("resnet50", None), "backbone='resnet50', but .*best.pt has 'resnet18'; leave backbone out"),
        ((None, 81), "num_classes=81, but .*best.pt has 3; leave num_classes out"),
    ],
)
def test_what_the_checkpoint_is_not_is_refused(arguments: tuple[str, int], reason: str, ours: Path):
    with pytest.raises(UserError, match=reason):
        ssd300(*arguments, ours)


def test_without_a_checkpoint_the_network_is_as_asked_for():
    network = ssd300("resnet18", 4, None)
    assert network.num_classes == 4
    assert network.category_names == ("class 1", "class 2", "class 3")
    assert ssd300("resnet18", None, None).category_names == COCO.names


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("vgg", None), "^backbone='vgg' is unknown; take one of resnet18, resnet34"),
        (("resnet18", 1), "^num_classes=1: give"),
        (("resnet18", 0), "^num_classes=0: give"),
        (("resnet18", "8"), "^num_classes='8': give a whole number"),
        (("resnet18", 8.0), "^num_classes=8.0: give a whole number"),
    ],
)
def test_a_network_that_does_not_exist_is_refused_by_its_argument(
    arguments: tuple[str, object], reason: str, ours: Path
):
    for checkpoint in (None, ours):
        with pytest.raises(UserError, match=reason):
            ssd300(*arguments, checkpoint)


def test_a_number_of_classes_may_be_one_of_numpys():
    assert ssd300("resnet18", np.arange(5).max(), None).num_classes == 4


def test_a_file_that_the_environment_names_is_refused_by_that_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", "nowhere.pt")
    with pytest.raises(UserError, match=r"^NVIDIA_SSD_WEIGHTS=nowhere\.pt: checkpoint nowhere\.pt does not"):
        nvidia()
    with pytest.raises(CheckpointError, match=r"^checkpoint here\.pt does not exist"):
        nvidia("here.pt")


# Arguments that don't fit


def test_an_unknown_model_math_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match="model_math='int8' is unknown; take one of fp32, fp16"):
        nvidia("/gone.pt", model_math="int8")


def test_weights_for_a_network_without_any_are_refused(ours: Path):
    with pytest.raises(UserError, match="leave one out"):
        nvidia(ours, pretrained=False)


# Files that are no weights


@pytest.mark.parametrize("load", [nvidia, lambda place: ssd300(None, None, place)])
@pytest.mark.parametrize("by_url", [False, True])
@pytest.mark.parametrize("pack", [saved, lambda state: pickle.dumps(state, protocol=2)])
def test_a_malicious_file_is_refused_and_does_not_run(
    load: Callable[[object], HubSSD300],
    by_url: bool,
    pack: Callable[[object], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    touched = tmp_path / "touched"
    content = pack({"model": Payload(touched)})
    (tmp_path / "evil.pt").write_bytes(content)
    with serving() as site:
        site.files["/evil.pt"] = content
        place = f"{site.url}/evil.pt" if by_url else tmp_path / "evil.pt"
        with pytest.raises(UserError, match=r"evil.*can't be read") as caught:
            load(place)
    assert ("delete it" in str(caught.value)) == by_url
    assert not touched.exists()


def test_a_malicious_file_in_the_environment_variable_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "evil.pt").write_bytes(saved({"model": Payload(tmp_path / "touched")}))
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", str(tmp_path / "evil.pt"))
    with pytest.raises(UserError, match=r"^NVIDIA_SSD_WEIGHTS=.*evil\.pt can't be read"):
        nvidia()
    assert not (tmp_path / "touched").exists()


def test_the_payload_would_run_otherwise(tmp_path: Path):
    torch.load(io.BytesIO(saved(Payload(tmp_path / "touched"))), weights_only=False)
    assert (tmp_path / "touched").exists()


def test_a_torch_that_can_be_made_to_run_files_reads_none(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(UserError, match=r"torch 2\.9\.1.*install 2\.10 or later"):
        nvidia(ours)


def test_a_downloaded_file_that_is_no_checkpoint_says_which_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with serving() as site:
        site.files["/w.pt"] = b"<html>Please log in</html>"
        with pytest.raises(UserError, match=r"checkpoints/w-\w+\.pt can't be read.*/w\.pt gave; delete it"):
            nvidia(f"{site.url}/w.pt")


def test_truncated_weights_are_refused(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(download, "BACKOFF_SECONDS", ())
    (tmp_path / "half.pt").write_bytes(ours.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"half\.pt can't be read"):
        nvidia(tmp_path / "half.pt")


# The network that users hold


def test_images_are_moved_to_the_networks_number_format(ours: Path):
    network = nvidia(ours)
    images = forward_images()[:1]
    single = outputs(network, images.half())
    assert single.dtype == torch.float32
    assert torch.equal(single, outputs(network, images.half().float()))
    double = outputs(network.double(), images)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), outputs(nvidia(ours), images), rtol=1e-3, atol=1e-4)


def test_images_are_moved_to_the_networks_device(ours: Path):
    network = nvidia(ours).to("meta")
    offsets, logits = network.eval()(forward_images())
    assert offsets.device == logits.device == torch.device("meta")
    assert (offsets.shape, logits.shape) == ((2, 4, 8732), (2, 3, 8732))


def pickled(network: nn.Module) -> nn.Module:
    return torch.load(io.BytesIO(saved(network)), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_is_the_same_network(copied: Callable[[nn.Module], HubSSD300], ours: Path, small: SSD300):
    network = copied(nvidia(ours))
    assert network.category_names == NAMES
    assert torch.equal(outputs(network, forward_images()), outputs(small, forward_images()))


def test_its_state_dict_loads_into_the_trainers_network(ours: Path):
    SSD300("resnet18", 3).load_state_dict(nvidia(ours).state_dict())


def test_it_compiles_to_one_graph(ours: Path, small: SSD300):
    compiled = torch.compile(nvidia(ours).eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        found = torch.cat(compiled(forward_images()), dim=1)
    assert torch.equal(found, outputs(small, forward_images()))


def test_fp16_is_close_to_fp32_and_keeps_batchnorm_in_float32(ours: Path):
    network = nvidia(ours, model_math="fp16")
    kinds = {(type(m), p.dtype) for m in network.modules() for p in m.parameters(recurse=False)}
    assert kinds == {(nn.Conv2d, torch.float16), (nn.BatchNorm2d, torch.float32)}
    images = forward_images()[:1]
    half, single = outputs(network, images), outputs(nvidia(ours), images)
    assert half.dtype == torch.float16
    assert not torch.equal(half.float(), single)
    assert (half.float() - single).abs().max() < 5e-3 * single.abs().max()


def test_half_of_all_of_it_is_close_too(ours: Path):
    network = nvidia(ours, model_math="fp16").half()
    images = forward_images()[:1]
    half, single = outputs(network, images), outputs(nvidia(ours), images)
    assert (half.float() - single).abs().max() < 1e-2 * single.abs().max()
