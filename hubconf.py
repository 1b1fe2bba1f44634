"""torch.hub's door to this repository: torch.hub.load(REPO, "nvidia_ssd") and what goes with it.

It imports torch alone: torch.hub looks for the other dependencies before it calls a function.
"""

import importlib
import os
import sys
import types

import torch

dependencies = ["torch", "torchvision", "numpy", "PIL"]  # as modules are imported

_PACKAGE = "ssd300_hub"  # not `ssd`: a user's own module may be called so
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ssd")


def nvidia_ssd(
    pretrained: bool = True,
    model_math: str = "fp32",
    force_reload: bool = False,
    weights: str | os.PathLike[str] | None = None,
) -> torch.nn.Module:
    """SSD300 v1.1 with ResNet-50 for COCO's 80 classes, with NVIDIA's published weights.

    pretrained: False gives random weights and reads nothing.
    model_math: "fp32"; or "fp16", where convolutions compute in float16 (slow on CPUs without float16 units).
    force_reload: download the weights again, though they are in torch.hub's folder. torch.hub.load keeps this
        keyword to itself but passes on positions: torch.hub.load(REPO, "nvidia_ssd", True, "fp32", True).
    weights: path or URL (http, https, file; #sha256=… is checked) of a published checkpoint or of one made by
        this trainer, whose backbone and classes the network then has. By default the environment variable
        NVIDIA_SSD_WEIGHTS says so, and without it they come from NVIDIA's NGC.

    Returns a module in training mode: call .eval(). Its `predict` takes pictures by path, as PIL pictures or
    uint8 arrays and gives boxes in pixels (docs/DATA.md, Predictions). Called itself, it takes
    images N×3×300×300, ImageNet-normalised, on any device, in any float format, and returns offsets N×4×8732
    and class logits N×81×8732 for decode_results.
    category_names are its classes' names, label 1's first.
    Raises ValueError for arguments that don't fit and weights that can't be had or read. Only tensors and
    plain values are unpickled. Source: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016; RECIPE.md.
    """
    network: torch.nn.Module = _hub().nvidia_ssd(pretrained, model_math, force_reload, weights)
    return network


def ssd300(
    backbone: str | None = None,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> torch.nn.Module:
    """SSD300 of this trainer: any of its ResNets, any number of classes.

    backbone: resnet18, resnet34, resnet50, resnet101 or resnet152. num_classes: background included.
        By default those of the checkpoint; resnet50 and 81 without one.
    checkpoint: path or URL of weights, as nvidia_ssd takes them, or a run's folder; None is random.
    Returns a module as nvidia_ssd does; its logits are N×num_classes×8732. category_names are those of the
    checkpoint; COCO's 80, or "class 1" and so on, where nothing names them.
    Raises ValueError as nvidia_ssd does, and where backbone or num_classes are not the checkpoint's.
    """
    network: torch.nn.Module = _hub().ssd300(backbone, num_classes, checkpoint)
    return network


def nvidia_ssd_processing_utils() -> types.ModuleType:
    """The hub page's functions; each one's own help has its arguments, shapes and units.

    prepare_input and prepare_tensor turn pictures into the networks' input, decode_results and pick_best
    their output into detections; get_coco_object_dictionary gives COCO's names.
    """
    return _hub()


def _hub() -> types.ModuleType:
    """Import ssd/hub.py of the folder of this file under a package name that is nobody else's."""
    loaded = sys.modules.get(_PACKAGE)
    if loaded is None or list(loaded.__path__) != [_FOLDER]:  # another clone's
        for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
            del sys.modules[name]
        sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
        sys.modules[_PACKAGE].__path__ = [_FOLDER]
    return importlib.import_module(f"{_PACKAGE}.hub")
