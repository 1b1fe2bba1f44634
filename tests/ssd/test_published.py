"""Published checkpoints ↔ ours, and the weights in a file of either kind."""

from pathlib import Path

import pytest
import torch

from ssd.checkpoint import FORMAT, CheckpointError, write
from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.model import BACKBONES, SSD300
from ssd.published import from_published, load_weights, to_published
from tests.golden_inputs import golden_json, published_weights

pytestmark = pytest.mark.unit

CONFIG = as_plain(TrainConfig(name="x"))


def meta_model(backbone: str) -> SSD300:
    """A model of shapes alone."""
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


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"conf.3.bias": None}, r"unknown keys none; missing keys conf\.3\.bias$"),
        (
            {"loc.5.bias": "loc.6.bias"},
            r"nearest is resnet18's\): unknown keys loc\.6\.bias; missing keys loc\.5\.bias$",
        ),
    ],
    ids=["missing", "missing and unknown"],
)
def test_published_weights_with_other_keys_are_refused_by_them(replaced: dict[str, str | None], message: str):
    weights = published_weights("resnet18")
    for key, other in replaced.items():
        value = weights.pop(key)
        if other is not None:
            weights[other] = value
    with pytest.raises(ValueError, match=message):
        from_published(weights)


def test_what_is_no_state_dict_of_that_layout_is_refused():
    ours = meta_model("resnet18").state_dict()
    with pytest.raises(ValueError, match=r"unknown keys epoch, model; missing keys .* and \d+ more"):
        from_published({"epoch": torch.zeros(1), "model": torch.zeros(1)})  # a whole checkpoint
    with pytest.raises(ValueError, match=r"unknown keys backbone\.conv1\.weight"):
        from_published(ours)
    with pytest.raises(ValueError, match=r"unknown keys feature_extractor\.feature_extractor\.0\.weight"):
        to_published(to_published(ours))


# Files


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_backbone_of_our_checkpoint_follows_from_its_keys(backbone: str, tmp_path: Path):
    network = SSD300(backbone, num_classes=3)
    categories = {"ids": [1, 2], "names": ["a", "b"]}
    state = {"format": FORMAT, "model": network.state_dict(), "categories": categories, "config": CONFIG}
    write(tmp_path / "ours.pt", state)
    weights = load_weights(tmp_path / "ours.pt")
    assert (weights.backbone, weights.num_classes) == (backbone, 3)
    restored = weights.network().state_dict()
    assert all(torch.equal(restored[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("wrapped", [True, False], ids=["in a dict", "bare"])
def test_a_published_file_is_read_with_its_number_of_classes(wrapped: bool, tmp_path: Path):
    network = SSD300("resnet18", num_classes=7)
    published = to_published(network.state_dict())
    torch.save({"epoch": 3, "model": published} if wrapped else published, tmp_path / "p.pt")
    weights = load_weights(tmp_path / "p.pt")
    assert (weights.num_classes, weights.categories, weights.config) == (7, None, None)
    assert all(torch.equal(weights.model[key], value) for key, value in network.state_dict().items())


def test_another_programs_checkpoint_is_refused(tmp_path: Path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="neither a checkpoint of this trainer nor a published SSD300"):
        load_weights(tmp_path / "other.pt")


MISFITS = {
    "1.bias": (torch.zeros(43), "(43,) for (42,)"),
    "2.bias": (torch.zeros(()), "() for (42,)"),
    "3.bias": (torch.zeros(42, device="meta"), "is no plain tensor (42,)"),
    "4.bias": (torch.zeros(28).to_sparse(), "is no plain tensor (28,)"),
    "5.bias": (torch.zeros(28, dtype=torch.complex64), "is no plain tensor (28,)"),
    "1.weight": (torch.zeros(1).expand(42, 512, 3, 3), "is no plain tensor (42, 512, 3, 3)"),
    "2.weight": ("text", "is no plain tensor (42, 512, 3, 3)"),
}
FIRST_HEADS = [  # by whose shape the classes are counted
    {"0.weight": (torch.zeros(()), "() for (8, 256, 3, 3)")},
    {"0.weight": (torch.zeros(1).expand(4 * 10**9, 256, 3, 3), "is no plain tensor (8, 256, 3, 3)")},
]


@pytest.mark.parametrize(
    ("ours", "changed"), [(True, MISFITS), (False, MISFITS), *zip((True, False), FIRST_HEADS, strict=True)]
)
def test_tensors_that_do_not_fit_are_named_with_what_fits(ours: bool, changed: dict, tmp_path: Path):
    model = dict(SSD300("resnet18", num_classes=7).state_dict())
    model |= {f"logit_heads.{key}": value for key, (value, _) in changed.items()}
    categories = {"ids": [*range(6)], "names": [*"abcdef"]}
    if ours:
        write(
            tmp_path / "x.pt", {"format": FORMAT, "model": model, "categories": categories, "config": CONFIG}
        )
    else:
        torch.save({"model": to_published(model)}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"x\.pt doesn't fit resnet18 with num_classes=[27]: .*; give another file$"
    ) as error:
        load_weights(tmp_path / "x.pt")
    for key, (_, reason) in changed.items():
        assert f"{'logit_heads' if ours else 'conf'}.{key} {reason}" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": None}, "lacks 'model'"),
        ({"categories": None}, "lacks 'categories'"),
        ({"config": None}, "lacks 'config'"),
        ({"model": torch.zeros(0)}, "model.* is a Tensor"),
        ({"categories": {"ids": [1, 2], "names": ["a"]}}, "its categories have 2 ids and 1 names; give"),
    ],
)
def test_a_checkpoint_of_ours_without_a_part_is_refused_by_it(changed: dict, reason: str, tmp_path: Path):
    state = {
        "format": FORMAT,
        "model": dict(SSD300("resnet18", num_classes=3).state_dict()),
        "config": CONFIG,
    }
    state |= {"categories": {"ids": [1, 2], "names": ["a", "b"]}} | changed
    write(tmp_path / "x.pt", {key: value for key, value in state.items() if value is not None})
    with pytest.raises(CheckpointError, match=rf"x\.pt .*{reason}"):
        load_weights(tmp_path / "x.pt")
