"""The torch.hub entry points of this repository, such as torch.hub.load(REPO, "nvidia_ssd").

It imports only torch. torch.hub checks for the other dependencies before it calls a function.
"""

import importlib
import os
import sys
import types

import torch

dependencies = ["torch", "torchvision", "numpy", "PIL"]  # names of modules, not of packages

_PACKAGE = "ssd300_hub"  # not `ssd`, which may be the name of a user's own module
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ssd")


def nvidia_ssd(
    pretrained: bool = True,
    model_math: str = "fp32",
    force_reload: bool = False,
    weights: str | os.PathLike[str] | None = None,
) -> torch.nn.Module:
    """SSD300 v1.1 with ResNet-50 for COCO's 80 classes, with NVIDIA's published weights.

    pretrained: False gives random weights and loads nothing.
    model_math: "fp32", or "fp16" for convolutions in float16 (slow on CPUs without float16 units).
    force_reload: download the weights even if torch.hub's folder has them. torch.hub.load uses up this
        keyword but passes on positional arguments: torch.hub.load(REPO, "nvidia_ssd", True, "fp32", True).
    weights: path or URL (http, https, file; #sha256=… is checked) of a published checkpoint or of one made by
        this trainer, which then sets backbone and classes. The default is the environment variable
        NVIDIA_SSD_WEIGHTS or, if it is not set, NVIDIA's NGC.

    Returns a module in training mode: call .eval(). Its `predict` takes pictures as paths, PIL pictures or
    uint8 arrays and returns boxes in pixels (docs/DATA.md, Predictions). Calling the module itself takes
    images N×3×300×300, ImageNet-normalised, on any device, in any float format, and returns offsets N×4×8732
    and class logits N×81×8732 for decode_results. Its category_names begin with label 1's.
    Raises ValueError for unusable arguments and weights that can't be downloaded or read. Only tensors and
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

    backbone: resnet18, resnet34, resnet50, resnet101 or resnet152. num_classes: including background.
        Both default to the checkpoint's, or to resnet50 and 81 without a checkpoint.
    checkpoint: path or URL of weights, as for nvidia_ssd, or a run's folder; None gives random weights.
    Returns a module like nvidia_ssd's, but its logits are N×num_classes×8732. category_names are the
    checkpoint's. If it has none, they are COCO's for 81 classes, else "class 1" and so on.
    Raises ValueError as nvidia_ssd does, and if backbone or num_classes differ from the checkpoint's.
    """
    network: torch.nn.Module = _hub().ssd300(backbone, num_classes, checkpoint)
    return network


def nvidia_ssd_processing_utils() -> types.ModuleType:
    """The hub page's functions; each one's help describes its arguments, shapes and units.

    prepare_input and prepare_tensor turn pictures into the networks' input; decode_results and pick_best turn
    the output into detections; get_coco_object_dictionary returns COCO's class names.
    """
    return _hub()


def _hub() -> types.ModuleType:
    """Import ssd/hub.py from beside this file, under a package name that nothing else uses."""
    loaded = sys.modules.get(_PACKAGE)
    if loaded is None or list(loaded.__path__) != [_FOLDER]:  # from another clone
        for name in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
            del sys.modules[name]
        sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
        sys.modules[_PACKAGE].__path__ = [_FOLDER]
    return importlib.import_module(f"{_PACKAGE}.hub")
