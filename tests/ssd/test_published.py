"""Conversion between published checkpoints and ours; loading weights from either kind of file."""

from pathlib import Path

import pytest
import torch

from ssd.checkpoint import FORMAT, CheckpointError, write
from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.model import BACKBONES, SSD300
from ssd.published import from_published, load_weights, to_published
from tests.golden_inputs import golden_json

pytestmark = pytest.mark.unit


def meta_model(backbone: str) -> SSD300:
    """Make a model that has only shapes."""
    with torch.device("meta"):
        return SSD300(backbone)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_published_layout_has_the_published_keys_and_shapes_in_order(backbone: str):
    published = to_published(meta_model(backbone).state_dict())
    expected = golden_json(f"state_dict_{backbone}.json")
    assert [(key, list(value.shape)) for key, value in published.items()] == list(expected.items())


@pytest.mark.parametrize("prefix", ["", "module.", "module.1."])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_layout_and_back_gives_the_same_tensors(backbone: str, prefix: str):
    ours = meta_model(backbone).state_dict()
    published = {f"{prefix}{key}": value for key, value in to_published(ours).items()}
    back = from_published(published)
    assert list(back) == list(ours)
    assert all(back[key] is value for key, value in ours.items())


OURS = meta_model("resnet18").state_dict()
PUBLISHED = to_published(OURS)
ALL_BUT_ONE = {key: value for key, value in PUBLISHED.items() if key != "conf.3.bias"}


@pytest.mark.parametrize(
    ("convert", "given", "message"),
    [
        (from_published, ALL_BUT_ONE, r"unknown keys none; missing keys conf\.3\.bias$"),
        (
            from_published,
            PUBLISHED | {"loc.6.bias": 0},
            r"nearest is resnet18's\): unknown keys loc\.6\.bias; ",
        ),
        (from_published, {"epoch": 0, "model": 0}, r"unknown keys epoch, model; missing keys .*, …$"),
        (from_published, OURS, r"unknown keys backbone\.conv1\.weight"),
        (to_published, PUBLISHED, r"unknown keys feature_extractor\.feature_extractor\.0\.weight"),
    ],
)
def test_weights_with_other_keys_are_refused_by_them(convert, given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        convert(given)


# Files


def save(path: Path, network: SSD300, **changed: object) -> None:
    """Write one of our checkpoints with these parts changed, or left out if None."""
    categories = {"ids": [*range(1, network.num_classes)], "names": [*"abcdef"][: network.num_classes - 1]}
    state = {"format": FORMAT, "model": dict(network.state_dict()), "categories": categories}
    state |= {"config": as_plain(TrainConfig(name="x"))} | changed
    write(path, {key: value for key, value in state.items() if value is not None})


@pytest.mark.parametrize("kind", ["ours", "published", "bare"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_a_file_gives_the_network_that_it_is_of(backbone: str, kind: str, tmp_path: Path):
    network, file = SSD300(backbone, num_classes=7), tmp_path / "x.pt"
    published = to_published(network.state_dict())
    if kind == "ours":
        save(file, network)
    else:
        torch.save({"epoch": 3, "model": published} if kind == "published" else published, file)
    weights = load_weights(file)
    assert (weights.backbone, weights.num_classes) == (backbone, 7)
    assert (weights.categories is None, weights.config is None) == (kind != "ours", kind != "ours")
    read = weights.network.state_dict()
    assert all(torch.equal(read[key], value) for key, value in network.state_dict().items())


MISFITS = [
    ("1.bias", torch.zeros(43), r"logit_heads\.1\.bias: .*\[43\].*\[42\]"),
    ("2.bias", torch.zeros(()), r"logit_heads\.2\.bias: .*\[42\]"),
    ("3.bias", torch.zeros(42, device="meta"), r"logit_heads\.3\.bias.*meta tensor"),
    ("4.bias", torch.zeros(28).to_sparse(), r"logit_heads\.4\.bias.*sparse"),
    ("2.weight", "text", r"logit_heads\.2\.weight.*'str'"),
    (
        "0.weight",
        torch.zeros(1).expand(4 * 10**9, 256, 3, 3),
        "can't allocate",
    ),  # its shape gives the number of classes
]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(("key", "value", "reason"), MISFITS)
def test_tensors_that_do_not_fit_are_named(ours: bool, key: str, value: object, reason: str, tmp_path: Path):
    network, file = SSD300("resnet18", num_classes=7), tmp_path / "x.pt"
    model = dict(network.state_dict()) | {f"logit_heads.{key}": value}
    if ours:
        save(file, network, model=model)
    else:
        torch.save({"model": to_published(model)}, file)
    with pytest.raises(
        CheckpointError, match=rf"x\.pt doesn't fit resnet18 with num_classes=\d+; .*{reason}"
    ):
        load_weights(file)


@pytest.mark.parametrize("part", ["model", "categories", "config"])
@pytest.mark.parametrize("value", [None, []])
def test_other_checkpoints_are_refused(part: str, value: object, tmp_path: Path):
    save(tmp_path / "x.pt", SSD300("resnet18", num_classes=3), **{part: value})
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "other.pt")
    for name in ("x.pt", "other.pt"):
        with pytest.raises(
            CheckpointError, match=f"{name} is neither a checkpoint of this trainer nor a publ"
        ):
            load_weights(tmp_path / name)
