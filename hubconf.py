"""torch.hub's door to this repository: torch.hub.load(REPO, "nvidia_ssd") and what goes with it.

It needs Python 3.11 or later, torch, torchvision, numpy and Pillow, and imports the last three only when a
function is called, after torch.hub has looked for them.
"""

import importlib
import importlib.util
import os
import sys
import types

import torch

# As modules are imported: torch.hub asks for each before it calls a function. torch itself requires filelock.
dependencies = ["torch", "torchvision", "numpy", "PIL", "filelock"]

# Not `ssd`: a user's own module may be called so, before or after.
_PACKAGE = "ssd300_hub"
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
        NVIDIA_SSD_WEIGHTS says so, and without it they come from NVIDIA's NGC. Only tensors and plain values
        are unpickled.

    Returns a torch.nn.Module in training mode: call .eval(). It takes images N×3×300×300, ImageNet-normalised
    (nvidia_ssd_processing_utils makes them), on any device, in any float format, and returns offsets N×4×8732
    and class logits N×81×8732 for decode_results. category_names are its classes' names, label 1's first.

    Raises ValueError for arguments that don't fit and weights that can't be had or read.

    Source: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016; NVIDIA DeepLearningExamples,
    PyTorch/Detection/SSD, as RECIPE.md describes it.
    """
    network: torch.nn.Module = _module("hub.network").nvidia_ssd(
        pretrained, model_math, force_reload, weights
    )
    return network


def ssd300(
    backbone: str | None = None,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> torch.nn.Module:
    """SSD300 of this trainer: any of its ResNets, any number of classes.

    backbone: resnet18, resnet34, resnet50, resnet101 or resnet152. num_classes: background included.
        By default those of the checkpoint; resnet50 and 81 without one.
    checkpoint: path or URL (http, https, file; #sha256=… is checked) of a run's checkpoint, such as
        runs/NAME/checkpoints/best.pt, or of a published one; None gives random weights. Only tensors and
        plain values are unpickled.

    Returns a module as nvidia_ssd does; its logits are N×num_classes×8732. category_names are those of the
    checkpoint; COCO's 80, or "class 1" and so on, where nothing names them.

    Raises ValueError where backbone or num_classes are not the checkpoint's, do not exist, or the checkpoint
    can't be had or read.
    """
    network: torch.nn.Module = _module("hub.network").ssd300(backbone, num_classes, checkpoint)
    return network


def nvidia_ssd_processing_utils() -> types.ModuleType:
    """Functions that turn pictures into the networks' input and their output into detections.

    prepare_input(img_uri, crop=True): a picture by path or URL → float32 300×300×3; x / 2 + 0.5 shows it.
        crop=False squashes the whole picture as in training, instead of taking its middle.
    prepare_tensor(inputs, fp16=False): a list of these → N×3×300×300 on the CPU, ImageNet-normalised.
    decode_results(predictions): the network's output → for each picture [boxes K×4 float32 ltrb relative to
        the 300×300, classes K int64 from 1, confidences K float32], at most 20, best first.
    pick_best(detections, threshold=0.3): one picture's, those above the threshold.
    get_coco_object_dictionary(): the 80 names; class k is the (k-1)th.

    They are numpy's arrays from end to end, empty ones where nothing was found, and need no GPU.
    """
    return _module("hub.processing")


def _module(name: str) -> types.ModuleType:
    """Import a module of the package beside this file under a name that is nobody else's."""
    loaded = sys.modules.get(_PACKAGE)
    if loaded is None or list(loaded.__path__) != [_FOLDER]:
        _load_package()
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _load_package() -> None:
    """Put this clone's package in the place of another clone's."""
    for other in [name for name in sys.modules if name.split(".")[0] == _PACKAGE]:
        del sys.modules[other]
    file = os.path.join(_FOLDER, "__init__.py")
    spec = importlib.util.spec_from_file_location(_PACKAGE, file, submodule_search_locations=[_FOLDER])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
