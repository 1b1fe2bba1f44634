"""The torch.hub entries, called as hubconf.py calls them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssd import hub
from ssd.categories import COCO
from ssd.checkpoint import FORMAT, write
from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.hub import nvidia_ssd, ssd300
from ssd.image import PictureError
from ssd.model import SSD300
from ssd.published import to_published
from tests.golden_inputs import decode_inputs, forward_images, golden_arrays
from tests.web_site import Site, serving

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NAMES = ("cell", "platelet")
CONFIG = as_plain(TrainConfig(name="x"))
SHA256_OF_NOTHING = hashlib.sha256().hexdigest()


def nvidia(weights: object = None, pretrained: bool = True, model_math: str = "fp32", reload: bool = False):
    return nvidia_ssd(pretrained, model_math, reload, weights)


def outputs(network: nn.Module, images: torch.Tensor | None = None) -> torch.Tensor:
    """Return offsets and logits in one tensor, in evaluation mode."""
    with torch.no_grad():
        return torch.cat(network.eval()(forward_images() if images is None else images), dim=1)


@pytest.fixture(scope="module")
def small() -> SSD300:
    """Make one of our networks, with BatchNorm statistics that differ from the initial ones."""
    torch.manual_seed(0)
    network = SSD300("resnet18", len(NAMES) + 1)
    with torch.no_grad():
        network(forward_images())
    return network


def save(path: Path, network: SSD300, names: tuple[str, ...] = NAMES, config: object = CONFIG) -> Path:
    categories = {"ids": [*range(1, len(names) + 1)], "names": list(names)}
    state = {"format": FORMAT, "model": dict(network.state_dict())}
    write(path, state | {"categories": categories, "config": config})
    return path


@pytest.fixture(scope="module")
def ours(small: SSD300, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("ours") / "my best.pt", small)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where torch.hub keeps weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return Path(torch.hub.get_dir(), "checkpoints")


# Networks and their weights


def test_a_network_comes_by_path_url_and_environment_variable(
    ours: Path, small: SSD300, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    site.files["/w.pt"] = ours.read_bytes()
    digest = hashlib.sha256(site.files["/w.pt"]).hexdigest().upper()
    monkeypatch.setenv("HOME", str(ours.parent))
    for source in (ours, f"~/{ours.name}", f"{ours.as_uri()}#sha256={digest}"):
        assert nvidia(source).category_names == NAMES
    for source in (f"{site.url}/w.pt", f"{site.url}/w.pt#sha256={digest}"):
        assert torch.equal(outputs(ssd300("resnet18", 3, source)), outputs(small))
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", str(ours))
    assert nvidia().category_names == NAMES
    assert nvidia(pretrained=False).category_names == COCO.names
    torch.save(to_published(small.state_dict()), tmp_path / "published.pt")
    assert nvidia(tmp_path / "published.pt").category_names == ("class 1", "class 2")
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", "/gone.pt")
    with pytest.raises(UserError, match=r"^NVIDIA_SSD_WEIGHTS=/gone\.pt: checkpoint /gone\.pt does not"):
        nvidia()


def test_a_network_without_a_checkpoint_is_as_asked_for():
    assert ssd300("resnet18", 4, None).category_names == ("class 1", "class 2", "class 3")
    assert ssd300("resnet18", None, None).category_names == COCO.names


def test_without_anything_given_nvidias_url_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "NVIDIA_URL", f"{site.url}/nvidia.pt")
    monkeypatch.delenv("NVIDIA_SSD_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"/nvidia\.pt: download failed .*404.*NVIDIA_SSD_WEIGHTS=PATH"):
        nvidia()


def test_a_download_is_kept_until_a_reload_that_succeeds(
    small: SSD300, site: Site, kept: Path, tmp_path: Path
):
    for path, name in (("/a/w.pt", "old"), ("/b/w.pt", "other"), ("/a/w.pt?version=2", "version")):
        site.files[path] = save(tmp_path / "w.pt", small, (name, "platelet")).read_bytes()
    url = f"{site.url}/a/w.pt"
    for _ in range(2):
        names = [nvidia(site.url + path).category_names[0] for path in site.files]
        assert names == ["old", "other", "version"]
    assert len(site.ranges) == 3
    site.files["/a/w.pt"] = save(tmp_path / "w.pt", small, ("new", "platelet")).read_bytes()
    site.breaks["/a/w.pt"] = 1000
    with pytest.raises(UserError, match=r"^weights=http"):
        nvidia(url, reload=True)
    assert nvidia(url).category_names[0] == "old"
    assert nvidia(url, reload=True).category_names[0] == nvidia(url).category_names[0] == "new"
    assert len(list(kept.iterdir())) == 3


# Arguments and files that don't fit


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (lambda _: nvidia("/gone.pt", model_math="int8"), "model_math='int8' is unknown; take fp32 or fp16"),
        (lambda ours: nvidia(ours, pretrained=False), "weights='.*' and pretrained=False .*; leave one out"),
        (lambda ours: ssd300("resnet50", None, ours), "backbone='resnet50': .* has resnet18; leave it out"),
        (lambda ours: ssd300(None, 81, ours), "num_classes=81: .*best.pt has 3; leave it out"),
        (lambda _: ssd300(None, None, "here.pt"), "^checkpoint=here.pt: checkpoint here.pt does not exist"),
        (lambda _: nvidia("http://127.0.0.1/w.pt#md5=abc"), "#md5=abc must be #sha256= and 64 hex digits"),
        (lambda ours: nvidia(f"{ours.as_uri()}#sha256={SHA256_OF_NOTHING}"), "invalid hash value .expected"),
        (lambda ours: hub.load(ours.parent), "checkpoints/best.pt does not exist"),
        (lambda ours: hub.load(ours, "gpu"), "^device='gpu' is unusable .*; give auto, cpu, cuda or cuda:1"),
        (lambda ours: hub.load(ours, "cuda:99"), "^device='cuda:99' is unusable"),
        (lambda ours: hub.load(ours, "cpu", "fp16"), "^precision=fp16 needs a GPU; on a CPU give precision="),
        (lambda ours: hub.load(ours, "cpu", "int8"), "^precision='int8': give fp16, bf16, fp32"),
        (
            lambda _: nvidia("s3://bucket/w.pt"),
            "^weights=s3://bucket/w.pt: download failed .*unknown url type",
        ),
        (lambda _: nvidia("http://127.0.0.1:9/ü.pt"), "^weights=http://127.0.0.1:9/ü.pt: download failed"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_argument(load, reason: str, ours: Path):
    with pytest.raises(ValueError, match=reason):
        load(ours)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/cut.pt", "can't be read"),
        (f"/whole.pt#sha256={SHA256_OF_NOTHING}", f'expected "{SHA256_OF_NOTHING}", got'),
    ],
)
def test_a_download_that_failed_is_named_and_leaves_nothing(
    path: str, reason: str, site: Site, kept: Path, ours: Path
):
    site.files |= {"/cut.pt": ours.read_bytes(), "/whole.pt": ours.read_bytes()}
    site.breaks["/cut.pt"] = 100_000
    with pytest.raises(UserError, match=f"^checkpoint={site.url}{path}: .*{reason}"):
        ssd300(None, None, site.url + path)
    assert list(kept.iterdir()) == []


def test_a_torch_that_can_be_made_to_run_files_reads_none(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(UserError, match=r"torch 2\.9\.1.*install 2\.10 or later"):
        nvidia(ours)


# The network that users get


@pytest.mark.parametrize(
    ("trained", "given", "computed"),
    [("fp16", None, "fp32"), ("bf16", None, "bf16"), ("fp32", None, "fp32"), ("bf16", "fp32", "fp32")],
)
def test_a_loaded_detector_computes_as_it_was_trained_where_the_device_can(
    trained: str, given: str | None, computed: str, small: SSD300, tmp_path: Path
):
    """From a run's folder. By default, a run on a GPU trains in float16, which a CPU can't compute in."""
    save(tmp_path / "checkpoints" / "best.pt", small, config=CONFIG | {"runtime": {"precision": trained}})
    detector = hub.load(tmp_path, "cpu", given)
    assert (detector.precision, detector.training, detector.category_names) == (computed, False, NAMES)
    picture = Image.new("RGB", (40, 30), "red")
    found, single = (each.predict(picture, 0).scores for each in (detector, ssd300(None, None, tmp_path)))
    assert np.allclose(found, single, rtol=1e-5) == (computed == "fp32")


def test_images_are_moved_to_the_networks_number_format_and_device(ours: Path):
    network, images = nvidia(ours), forward_images()[:1]
    assert torch.equal(outputs(network, images.half()), outputs(network, images.half().float()))
    assert outputs(network.double(), images).dtype == torch.float64
    assert outputs(network.to("meta"), images).device == torch.device("meta")


def test_fp16_is_close_to_fp32_and_keeps_batchnorm_in_float32(ours: Path, small: SSD300):
    network, images = nvidia(ours, model_math="fp16"), forward_images()[:1]
    kinds = {(type(m), p.dtype) for m in network.modules() for p in m.parameters(recurse=False)}
    assert kinds == {(nn.Conv2d, torch.float16), (nn.BatchNorm2d, torch.float32)}
    half, single = outputs(network, images), outputs(small, images)
    assert half.dtype == torch.float16
    assert 0 < (half.float() - single).abs().max() < 5e-3 * single.abs().max()


# Pictures → input


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "a wide picture.png"
    Image.effect_noise((420, 300), 50).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("size", [(420, 300), (640, 480), (480, 641), (7, 5), (1, 9), (1, 20000)])
def test_half_plus_a_half_is_the_pictures_middle_or_all_of_it(size: tuple[int, int], tmp_path: Path):
    """The middle is the hub page's, up to half a pixel of position."""
    row, column = np.mgrid[: size[1], : size[0]] * (255 / max(size))
    picture = Image.fromarray(np.stack([column, row, 0 * row], axis=-1).astype(np.uint8))
    picture.save(tmp_path / "x.png")
    resized = picture.resize([side * 300 // min(size) for side in size], Image.Resampling.BILINEAR)
    left, top = resized.width // 2 - 150, resized.height // 2 - 150
    squashed = picture.resize((300, 300), Image.Resampling.BILINEAR)
    for crop, expected in ((True, resized.crop((left, top, left + 300, top + 300))), (False, squashed)):
        found = hub.prepare_input(tmp_path / "x.png", crop)
        assert (found.dtype, found.shape) == (np.float32, (300, 300, 3))
        assert np.abs((found / 2 + 0.5) * 255 - np.asarray(expected)).max() <= 2


def test_path_file_url_and_http_give_the_same_picture(
    wide: Path, site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(wide.parent))
    site.files["/a%20wide%20picture.png?raw=1"] = wide.read_bytes()
    http = f"{site.url}/a%20wide%20picture.png?raw=1"
    found = [hub.prepare_input(each) for each in (wide, wide.as_uri(), f"~/{wide.name}", http)]
    assert all(np.array_equal(each, found[0]) for each in found)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("/gone.png", "HTTP Error 404"), ("/cut.png", "50 bytes read"), ("/page", "known kind")],
)
def test_a_picture_that_cannot_be_had_is_named(path: str, reason: str, wide: Path, site: Site):
    site.files |= {"/cut.png": wide.read_bytes(), "/page": b"<html>"}
    site.breaks["/cut.png"] = 50
    with pytest.raises(PictureError, match=f"{site.url}{path} .*{reason}"):
        hub.prepare_input(site.url + path)


def test_the_tensor_is_what_the_network_was_trained_on(wide: Path):
    inputs = [hub.prepare_input(wide), hub.prepare_input(wide, crop=False)]
    tensor = hub.prepare_tensor(inputs)
    assert (tensor.dtype, tensor.shape, tensor.device.type) == (torch.float32, (2, 3, 300, 300), "cpu")
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (np.stack(inputs)[..., channel] / 2 + 0.5 - mean) / std
        np.testing.assert_allclose(tensor[:, channel], expected, atol=1e-5)
    assert torch.equal(hub.prepare_tensor(inputs, True), tensor.half())


@pytest.mark.parametrize("inputs", [np.zeros((300, 300, 3)), [np.zeros((3, 300, 300))], []])
def test_inputs_of_another_shape_are_refused(inputs: object):
    with pytest.raises(UserError, match="list of arrays 300×300×3"):
        hub.prepare_tensor(inputs)


# Output → detections


def test_detections_are_the_published_ones():
    golden = golden_arrays("decode.npz")
    offsets, logits = decode_inputs()  # they are exact in float16
    for predictions in ((offsets, logits), (offsets.half().requires_grad_(), logits.half())):
        for index, found in enumerate(hub.decode_results(predictions)):
            assert [part.dtype for part in found] == [np.float32, np.int64, np.float32]
            for part, name in zip(found, ("boxes", "labels", "scores"), strict=True):
                # Golden scores ascend, ours descend.
                expected = golden[f"{name}_iou0.5_max20_{index}"][::-1]
                np.testing.assert_allclose(part, expected, atol=1e-5)


def test_what_is_picked_and_that_nothing_found_is_empty_arrays_and_shifts_no_others():
    offsets, logits = decode_inputs()
    logits[1, 0] = 1000
    results = hub.decode_results((offsets, logits))
    assert [len(each[0]) for each in results] == [20, 0, 20]
    assert [part.shape for part in hub.pick_best(results[1], 0.4)] == [(0, 4), (0,), (0,)]
    limit = float(results[0][2][7])  # only confidences above it are picked
    for picked, found in zip(hub.pick_best(results[0], limit), results[0], strict=True):
        assert np.array_equal(picked, found[results[0][2] > limit])
    names = hub.get_coco_object_dictionary()
    assert (len(names), names[0], names[16], names[79]) == (80, "person", "dog", "toothbrush")
