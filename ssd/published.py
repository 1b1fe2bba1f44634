"""Published checkpoints ↔ ours; the weights in a file of either kind → a network."""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .boxes import BOXES_PER_CELL
from .categories import COCO, Categories
from .checkpoint import FORMAT, CheckpointError, load_file
from .errors import UserError
from .model import SSD300, is_plain, misfits, shortened

# Our beginning of a state-dict key, and the published one.
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

# By whether a block has a third convolution, and by the number of blocks in layer3.
_BACKBONES = {
    (False, 2): "resnet18",
    (False, 6): "resnet34",
    (True, 6): "resnet50",
    (True, 23): "resnet101",
    (True, 36): "resnet152",
}


@dataclass(frozen=True)
class Weights:
    """What a detector can be made of.

    model: state dict in our layout. backbone, num_classes: as its keys and shapes have them.
    categories, config (its sections data and runtime): None in a published checkpoint, which has neither.
    """

    model: dict[str, Tensor]
    backbone: str
    num_classes: int
    categories: Categories | None
    config: dict[str, Any] | None

    def network(self) -> SSD300:
        """Return the detector that these are the weights of."""
        network = SSD300(self.backbone, self.num_classes)
        network.load_state_dict(self.model)
        return network

    def categories_or_coco(self, checkpoint: object) -> Categories:
        """Return the checkpoint's categories; a published one of 81 classes has COCO's.

        Raises UserError for a published checkpoint of another number of classes, which nobody can name.
        """
        if self.categories is not None:
            return self.categories
        if self.num_classes == COCO.num_classes:
            return COCO
        raise UserError(
            f"{checkpoint} doesn't name its {self.num_classes - 1} classes, and COCO has {len(COCO.ids)}; "
            "give a checkpoint written by train.py, which does"
        )


def load_weights(path: Path) -> Weights:
    """Read the weights of one of our checkpoints or of a published one (`model` in a dict, or bare).

    path: the file; of a run's folder its checkpoints/best.pt. Nothing but tensors and plain values is
    unpickled. Raises CheckpointError where the file is neither, or where a tensor doesn't fit its network.
    """
    if os.path.isdir(path):
        folder, path = path, path / "checkpoints" / "best.pt"
        if not os.path.lexists(path):
            fix = "give a run's folder once it was evaluated, or a checkpoint file"
            raise CheckpointError(f"checkpoint {folder} is a folder without checkpoints/best.pt; {fix}")
    state = load_file(path)
    ours = state.get("format") == FORMAT
    try:
        model = state["model"] if ours else state.get("model", state)
        if not isinstance(model, dict):
            raise TypeError(f"its model is a {type(model).__name__}")
        model = model if ours else from_published(model)
        backbone = backbone_of(model)
        categories = Categories.from_plain(state["categories"]) if ours else None
        config = {key: dict(state["config"][key]) for key in ("data", "runtime")} if ours else None
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}; give a checkpoint that is whole") from error
    except (ValueError, AttributeError, TypeError) as error:
        reason = f"neither a checkpoint of this trainer nor a published SSD300 ({error})"
        raise CheckpointError(f"{path} is {reason}") from error
    head = model["logit_heads.0.weight"]
    num_classes = max(2, len(head) // BOXES_PER_CELL[0]) if is_plain(head) and head.ndim else 2
    with torch.device("meta"):
        unfit = misfits(model, SSD300(backbone, num_classes).state_dict())
    if categories and {len(categories.ids), len(categories.names)} != {num_classes - 1}:
        unfit.append(f"its categories have {len(categories.ids)} ids and {len(categories.names)} names")
    if unfit:
        named = unfit if ours else [_renamed(text) for text in unfit]
        network = f"{backbone} with num_classes={num_classes}"
        raise CheckpointError(f"{path} doesn't fit {network}: {shortened(named)}; give another file")
    return Weights(model, backbone, num_classes, categories, config)


def from_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the state dict of a published SSD300, the `model` entry of its checkpoint, the keys of ours.

    Its keys may begin with `module.` or `module.1.`, as distributed training leaves them. Tensors are shared.
    Raises ValueError naming the keys that are unknown or missing.
    """
    given = {key.removeprefix("module.1.").removeprefix("module."): key for key in state_dict}
    backbone = _backbone_by_depth([_renamed(key, to_ours=True) for key in given])
    ours = {_renamed(key): key for key in _keys_of(backbone)}
    _check_keys(given, ours, backbone)
    return {key: state_dict[given[published]] for published, key in ours.items()}


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our SSD300's state dict the published keys in the published order, the inverse of from_published.

    Raises ValueError naming the keys that are unknown or missing.
    """
    return {_renamed(key): state_dict[key] for key in _keys_of(backbone_of(state_dict))}


def backbone_of(keys: Collection[str]) -> str:
    """Name the backbone, one of ssd.model.BACKBONES, of the SSD300 whose state dict has these keys, ours.

    Raises ValueError naming the keys that are unknown or missing.
    """
    backbone = _backbone_by_depth(keys)
    _check_keys(keys, _keys_of(backbone), backbone)
    return backbone


def _backbone_by_depth(keys: Collection[str]) -> str:
    blocks = {match[1] for key in keys if (match := re.match(r"backbone\.layer3\.(\d+)\.", key))}
    return _BACKBONES.get(("backbone.layer1.0.conv3.weight" in keys, len(blocks)), "resnet50")


def _check_keys(given: Collection[str], expected: Collection[str], backbone: str) -> None:
    unknown = [key for key in given if key not in expected]
    missing = [key for key in expected if key not in given]
    if unknown or missing:
        raise ValueError(
            f"not the state dict of an SSD300 (the nearest is {backbone}'s): "
            f"unknown keys {shortened(unknown)}; missing keys {shortened(missing)}"
        )


def _keys_of(backbone: str) -> list[str]:
    with torch.device("meta"):
        return [*SSD300(backbone).state_dict()]


def _renamed(key: str, to_ours: bool = False) -> str:
    """Give one of our keys the published name, or the other way round; an unknown key stays as it is."""
    for ours, published in _PREFIXES:
        old, new = (published, ours) if to_ours else (ours, published)
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
