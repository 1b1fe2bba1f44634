"""Convert between published checkpoints and ours, and load a network from a file of either kind."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from .boxes import BOXES_PER_CELL
from .categories import Categories
from .checkpoint import FORMAT, CheckpointError, load_file
from .model import SSD300, one_line

# Prefixes of state-dict keys: ours, published.
_PREFIXES = (
    ("backbone.conv1.", "feature_extractor.feature_extractor.0."),
    ("backbone.bn1.", "feature_extractor.feature_extractor.1."),
    ("backbone.layer1.", "feature_extractor.feature_extractor.4."),
    ("backbone.layer2.", "feature_extractor.feature_extractor.5."),
    ("backbone.layer3.", "feature_extractor.feature_extractor.6."),
    *(
        (f"extra_blocks.{index}.{ours}.", f"additional_blocks.{index}.{published}.")
        for index in range(5)
        for ours, published in (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4))
    ),
    ("offset_heads.", "loc."),
    ("logit_heads.", "conf."),
)

# Number of keys in a state dict, which identifies the backbone.
_KEYS = {"resnet18": 174, "resnet34": 258, "resnet50": 342, "resnet101": 648, "resnet152": 954}


@dataclass(frozen=True)
class Weights:
    """The contents of a weights file, from which a detector is built.

    network: with the weights loaded, float32. backbone, num_classes: derived from the keys and shapes.
    categories, config (sections data and runtime only): None for a published checkpoint, which has neither.
    """

    network: SSD300
    backbone: str
    num_classes: int
    categories: Categories | None
    config: dict[str, Any] | None


def load_weights(path: Path) -> Weights:
    """Read the weights of one of our checkpoints or of a published one (a dict with `model`, or bare).

    path: a file, or a run folder, whose checkpoints/best.pt is read. Only tensors and plain values are
    unpickled. Raises CheckpointError if the file is neither kind or a tensor doesn't fit the network.
    """
    if path.is_dir():
        path = path / "checkpoints" / "best.pt"
    state = load_file(path)
    ours = state.get("format") == FORMAT
    try:
        model = state["model"] if ours else from_published(state.get("model", state))
        backbone = _backbone(model)
        num_classes = len(model["logit_heads.0.weight"]) // BOXES_PER_CELL[0]
        with torch.device("meta"):
            network = SSD300(backbone, num_classes)
        network.to_empty(device="cpu").load_state_dict(model)
        categories = Categories.from_plain(state["categories"]) if ours else None
        config = {key: dict(state["config"][key]) for key in ("data", "runtime")} if ours else None
    except RuntimeError as error:
        fit = f"{backbone} with num_classes={num_classes}"
        raise CheckpointError(f"{path} doesn't fit {fit}; give another file: {one_line(error)}") from error
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        reason = f"neither a checkpoint of this trainer nor a published SSD300 ({error})"
        raise CheckpointError(f"{path} is {reason}; give another file") from error
    return Weights(network, backbone, num_classes, categories, config)


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a published SSD300's state dict (`model` in its checkpoint) to ours.

    Keys may begin with `module.` or `module.1.`, which distributed training adds. Tensors are shared.
    Raises ValueError naming the keys that are unknown or missing.
    """
    given = {key.removeprefix("module.1.").removeprefix("module."): state_dict[key] for key in state_dict}
    return {ours: given[published] for ours, published in _layout(given, published=True)}


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state-dict keys to the published ones, in published order; the inverse of from_published.

    Raises ValueError naming the keys that are unknown or missing.
    """
    return {published: state_dict[ours] for ours, published in _layout(state_dict, published=False)}


def _backbone(keys: Collection[str]) -> str:
    return min(_KEYS, key=lambda name: abs(_KEYS[name] - len(keys)))


def _layout(keys: Collection[str], published: bool) -> list[tuple[str, str]]:
    """List (our key, published key) in order for the SSD300 to which the given keys belong."""
    backbone = _backbone(keys)
    with torch.device("meta"):
        layout = [(key, _published(key)) for key in SSD300(backbone).state_dict()]
    expected = [theirs if published else ours for ours, theirs in layout]
    unknown = [key for key in keys if key not in expected]
    missing = [key for key in expected if key not in keys]
    if unknown or missing:
        named = (shorten(", ".join(some), 200, placeholder=" …") or "none" for some in (unknown, missing))
        raise ValueError(
            f"not the state dict of an SSD300 (the nearest is {backbone}'s): "
            "unknown keys {}; missing keys {}".format(*named)
        )
    return layout


def _published(key: str) -> str:
    return next(theirs + key.removeprefix(ours) for ours, theirs in _PREFIXES if key.startswith(ours))
