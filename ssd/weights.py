"""The weights in a checkpoint file, ours or a published one, and what they say of the network they are of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .categories import Categories
from .checkpoint import FORMAT, CheckpointError, load_file
from .model import SSD300, backbone_of, from_published


@dataclass(frozen=True)
class Weights:
    """What a detector can be made of.

    model: state dict in our layout. backbone, num_classes: as its keys and shapes have them.
    categories, config: None in a published checkpoint, which has neither.
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


def load_weights(path: Path) -> Weights:
    """Read the weights of one of our checkpoints or of a published one (`model` in a dict, or bare).

    Nothing but tensors and plain values is unpickled. Raises CheckpointError where the file is neither.
    """
    state = load_file(path)
    ours = state.get("format") == FORMAT
    try:
        model = state["model"] if ours else from_published(state.get("model", state))
        backbone = backbone_of(model)
    except (ValueError, AttributeError, TypeError) as error:
        reason = f"neither a checkpoint of this trainer nor a published SSD300 ({error})"
        raise CheckpointError(f"{path} is {reason}") from error
    num_classes = model["logit_heads.0.weight"].shape[0] // 4
    if not ours:
        return Weights(model, backbone, num_classes, None, None)
    categories = Categories.from_plain(state["categories"])
    return Weights(model, backbone, num_classes, categories, state["config"])
