"""The networks that torch.hub hands out, and their weights."""

import re

import numpy as np
import torch
from torch import Tensor, nn

from ..categories import COCO
from ..checkpoint import CheckpointError
from ..errors import UserError
from ..model import BACKBONES, SSD300
from ..published import Weights, load_weights
from .places import Place, local_file
from .weight_files import ENVIRONMENT_VARIABLE, NVIDIA_URL, nvidia_weights, weight_file

MODEL_MATHS = ("fp32", "fp16")

# Earlier ones can be made to run code by a file read with weights_only: CVE-2025-32434, CVE-2026-24747.
_SAFE_TORCH = (2, 10)


class HubSSD300(SSD300):
    """SSD300 that takes images wherever they are and knows what its classes are called.

    backbone: as SSD300 has it. category_names: label k is category_names[k-1]; background has none.
    Its state dict is an SSD300's.
    """

    def __init__(self, backbone: str, category_names: tuple[str, ...]) -> None:
        super().__init__(backbone, len(category_names) + 1)
        self.category_names = category_names

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Move images N×3×300×300 to the network's device and number format, then do as SSD300 does."""
        weight = self.offset_heads[0].weight
        assert isinstance(weight, Tensor)
        return super().forward(images.to(weight.device, weight.dtype))


def nvidia_ssd(pretrained: bool, model_math: str, force_reload: bool, weights: Place | None) -> HubSSD300:
    """Do what hubconf.nvidia_ssd says."""
    if model_math not in MODEL_MATHS:
        raise UserError(f"model_math={model_math!r} is unknown; take one of {', '.join(MODEL_MATHS)}")
    if pretrained:
        network = _network_of(
            _default_weights(force_reload) if weights is None else _read(weights, force_reload)
        )
    elif weights is None:
        network = HubSSD300("resnet50", COCO.names)
    else:
        raise UserError(f"weights={str(weights)!r} and pretrained=False exclude each other; leave one out")
    return _halved(network) if model_math == "fp16" else network


def ssd300(backbone: str | None, num_classes: int | None, checkpoint: Place | None) -> HubSSD300:
    """Do what hubconf.ssd300 says."""
    if backbone is not None and backbone not in BACKBONES:
        raise UserError(f"backbone={backbone!r} is unknown; take one of {', '.join(BACKBONES)}")
    if num_classes is not None and (not isinstance(num_classes, int | np.integer) or num_classes < 2):
        raise UserError(f"num_classes={num_classes!r}: give a whole number from 2 on; background counts")
    if checkpoint is None:
        names = _default_names(COCO.num_classes if num_classes is None else num_classes)
        return HubSSD300("resnet50" if backbone is None else backbone, names)
    weights = _read(checkpoint, force_reload=False)
    for name, wanted, found in (
        ("backbone", backbone, weights.backbone),
        ("num_classes", num_classes, weights.num_classes),
    ):
        if wanted not in (None, found):
            raise UserError(
                f"{name}={wanted!r}, but {checkpoint} has {found!r}; leave {name} out or give another file"
            )
    return _network_of(weights)


def _default_weights(force_reload: bool) -> Weights:
    """Read NVIDIA's weights, or those that the environment names instead."""
    place = nvidia_weights()
    try:
        return _read(place, force_reload)
    except UserError as error:
        if place == NVIDIA_URL:
            raise
        raise UserError(f"{ENVIRONMENT_VARIABLE}={place}: {error}") from error


def _read(place: Place, force_reload: bool) -> Weights:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version and (int(version[1]), int(version[2])) < _SAFE_TORCH:
        needed = ".".join(map(str, _SAFE_TORCH))
        raise UserError(
            f"torch {torch.__version__} may run code that a weight file hides; install {needed} or later"
        )
    path = weight_file(place, force_reload)
    try:
        return load_weights(path)
    except CheckpointError as error:
        if local_file(place) is not None:
            raise
        raise UserError(
            f"{error}. It is what {place} gave; delete it to have that downloaded again"
        ) from error


def _network_of(weights: Weights) -> HubSSD300:
    known = weights.categories
    names = _default_names(weights.num_classes) if known is None else known.names
    network = HubSSD300(weights.backbone, names)
    network.load_state_dict(weights.model)
    return network


def _default_names(num_classes: int) -> tuple[str, ...]:
    """Return COCO's for as many classes as COCO has: published checkpoints name none. Else numbers."""
    if num_classes == COCO.num_classes:
        return COCO.names
    return tuple(f"class {label}" for label in range(1, num_classes))


def _halved(network: HubSSD300) -> HubSSD300:
    """Let convolutions compute in float16; BatchNorm keeps float32, for float16 can't hold every variance.

    In channels_last, as the recipe has it for float16 (RECIPE 5); on a CPU too that is several times as fast.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.half()
    return network.to(memory_format=torch.channels_last)
