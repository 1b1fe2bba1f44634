"""What ssd.load and torch.hub offer: detectors from weights by path or URL, and the hub page's functions.

It needs only torch, torchvision, numpy and Pillow. Imports are relative: under torch.hub it isn't in `ssd`.
"""

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .boxes import IMAGE_SIZE, default_boxes
from .categories import COCO
from .detect import detect
from .detector import Detector, check_precision
from .errors import UserError
from .image import PictureError, centre_crop, normalize, read_picture, squash
from .published import Weights, load_weights

Source = str | os.PathLike[str]  # a path (~ is the home folder) or an http:, https: or file: URL

# NVIDIA's published SSD300 v1.1: ResNet-50 trained on COCO 2017 (RECIPE 8).
NVIDIA_URL = (
    "https://api.ngc.nvidia.com/v2/models/nvidia/ssd_pyt_ckpt_amp/versions/20.06.0/files/"
    "nvidia_ssdpyt_amp_200703.pt"
)


def load(checkpoint: Source, device: str = "auto", precision: str | None = None) -> Detector:
    """Load a detector, whose `predict` finds the objects in pictures. This is ssd.load.

    checkpoint: a run's folder (its best.pt), or a checkpoint, ours or published, by path or URL.
    device: auto (a GPU if there is one), cpu, cuda or cuda:1. precision: fp16 (GPUs only), bf16 or fp32. The
    default is that of training, but fp32 for fp16 on a CPU and for a published checkpoint.
    Returns it in evaluation mode. Raises UserError, a ValueError, if an argument can't be used.
    """
    where = _device(device)
    weights = _weights("checkpoint", checkpoint)
    if precision is None:
        precision = str(weights.config["runtime"]["precision"]) if weights.config else "fp32"
        precision = "fp32" if (precision, where.type) == ("fp16", "cpu") else precision
    check_precision(precision, where)
    detector = Detector.of(weights, precision).to(where)
    return detector.to(memory_format=torch.channels_last).eval()  # RECIPE 5


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name!r} is unusable ({reason}); give auto, cpu, cuda or cuda:1") from error


def nvidia_ssd(pretrained: bool, model_math: str, force_reload: bool, weights: Source | None) -> Detector:
    """Implement hubconf.nvidia_ssd."""
    if model_math not in ("fp32", "fp16"):
        raise UserError(f"model_math={model_math!r} is unknown; take fp32 or fp16")
    if weights is not None and not pretrained:
        raise UserError(f"weights={str(weights)!r} and pretrained=False exclude each other; leave one out")
    if not pretrained:
        network = Detector("resnet50", COCO.num_classes)
    elif weights is None and (named := os.environ.get("NVIDIA_SSD_WEIGHTS")):
        network = Detector.of(_weights("NVIDIA_SSD_WEIGHTS", named, force_reload))
    else:
        network = Detector.of(_weights("weights", NVIDIA_URL if weights is None else weights, force_reload))
    if model_math == "fp16":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # not BatchNorm: float16 can't hold every variance
                module.half()
        network.to(memory_format=torch.channels_last)  # RECIPE 5; several times faster, on a CPU too
    return network


def ssd300(backbone: str | None, num_classes: int | None, checkpoint: Source | None) -> Detector:
    """Implement hubconf.ssd300."""
    if checkpoint is None:
        num_classes = COCO.num_classes if num_classes is None else num_classes
        return Detector("resnet50" if backbone is None else backbone, num_classes)
    weights = _weights("checkpoint", checkpoint)
    if backbone not in (None, weights.backbone):
        raise UserError(f"backbone={backbone!r}: {checkpoint} has {weights.backbone}; leave it out")
    if num_classes not in (None, weights.num_classes):
        raise UserError(f"num_classes={num_classes}: {checkpoint} has {weights.num_classes}; leave it out")
    return Detector.of(weights)


def prepare_input(img_uri: Source, crop: bool = True) -> NDArray[np.float32]:
    """Read a picture and resize it to float32 300×300×3 RGB in [-1, 1]; x / 2 + 0.5 brings it to [0, 1].

    img_uri: a path or URL. crop: resize the short side to 300 and take the middle. False squashes the whole
    picture, as in training (RECIPE 6); boxes are then relative to the whole picture.
    Raises PictureError if the picture can't be fetched or read.
    """
    text = os.fspath(img_uri)
    picture = read_picture(_fetched(text) if _is_url(text) else os.path.expanduser(text), text)
    picture = centre_crop(picture) if crop else squash(picture)
    return np.asarray(picture, dtype=np.float32) / 127.5 - 1


def prepare_tensor(inputs: Sequence[NDArray[np.float32]], fp16: bool = False) -> Tensor:
    """Stack prepare_input's arrays into the network's input: N×3×300×300 on the CPU, ImageNet-normalised.

    float32, or float16 with fp16; the hub's networks take either. (The published function leaves values in
    [-1, 1], but the network was trained on ImageNet-normalised ones, RECIPE 1 and 9.)
    Raises UserError if inputs are not N×300×300×3.
    """
    values = np.asarray(inputs, dtype=np.float32)
    if values.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise UserError(f"prepare_tensor takes a list of arrays 300×300×3, got shape {values.shape}")
    images = normalize(values / 2 + 0.5).contiguous()
    return images.half() if fp16 else images


def decode_results(predictions: tuple[Tensor, Tensor]) -> list[list[NDArray[Any]]]:
    """Turn the network's output into detections (RECIPE 7).

    predictions: (offsets N×4×8732, logits N×C×8732), on any device, in any float format.
    Returns for each picture [boxes K×4 float32, classes K int64, confidences K float32], best first, K ≤ 20.
    Boxes are ltrb relative to prepare_input's output, not clipped to [0, 1]. Classes count from 1.
    Confidences are above 0.05. Boxes of one class that overlap with IoU ≥ 0.5 are reduced to the best one.
    """
    offsets, logits = predictions
    found = detect(offsets, logits, default_boxes().to(offsets.device), max_detections=20)
    return [[part.numpy() for part in (each.boxes, each.labels, each.scores)] for each in found]


def pick_best(detections: Sequence[NDArray[Any]], threshold: float = 0.3) -> list[NDArray[Any]]:
    """Keep the detections of one picture, [boxes K×4, classes K, confidences K], above a confidence."""
    kept = detections[2] > threshold
    return [part[kept] for part in detections]


def get_coco_object_dictionary() -> list[str]:
    """Return COCO's 80 class names; class k is at k-1. A network's own names are its category_names."""
    return list(COCO.names)


def _weights(argument: str, source: Source, force_reload: bool = False) -> Weights:
    """Load the weights given by an argument or environment variable, whose name begins any UserError."""
    # Earlier versions of torch.load run a file's code even with weights_only: CVE-2025-32434, CVE-2026-24747.
    if TorchVersion(torch.__version__) < "2.10.0a0":
        raise UserError(f"torch {torch.__version__} may run code that a file hides; install 2.10 or later")
    text = os.fspath(source)
    try:
        if _is_url(text):
            return _downloaded(text, force_reload)
        return load_weights(Path(os.path.expanduser(text)))  # Path.expanduser fails on a file called ~x
    except (UserError, OSError) as error:
        raise UserError(f"{argument}={source}: {error}") from error


def _downloaded(url: str, force_reload: bool) -> Weights:
    """Load weights from a URL. A download that loads is kept in torch.hub's folder; a file: URL is not."""
    fragment = urlsplit(url).fragment
    if fragment and not re.fullmatch(r"sha256=[0-9a-fA-F]{64}", fragment):
        raise UserError(f"#{fragment} must be #sha256= and 64 hex digits, or be left out")
    unique = hashlib.sha256(url.encode()).hexdigest()[:16]  # so that URLs with the same file name stay apart
    kept = Path(torch.hub.get_dir(), "checkpoints", f"ssd300-{unique}.pt")
    if kept.is_file() and not force_reload:
        return load_weights(kept)
    print(f"Downloading {url} to {kept}", file=sys.stderr)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="download-", dir=kept.parent) as folder:
        arriving = Path(folder, kept.name)
        try:
            sha256 = fragment.removeprefix("sha256=").lower()
            torch.hub.download_url_to_file(url, str(arriving), hash_prefix=sha256)
        except (OSError, HTTPException, ValueError, RuntimeError) as error:  # RuntimeError: wrong sha256
            fix = "check URL and network, or give a file's path (for nvidia_ssd NVIDIA_SSD_WEIGHTS=PATH too)"
            raise UserError(f"download failed ({error}); {fix}") from error
        weights = load_weights(arriving)  # also finds a download cut short, which torch.hub ignores
        if not url.startswith("file:"):
            arriving.replace(kept)
    return weights


def _fetched(url: str) -> BytesIO:
    try:
        request = Request(url, headers={"User-Agent": "ssd300"})  # some servers refuse urllib's default
        with urlopen(request, timeout=30) as answer:  # seconds without data
            return BytesIO(answer.read())
    except (OSError, HTTPException, ValueError) as error:
        raise PictureError(f"{url} can't be fetched ({error}); check URL and network") from error


def _is_url(text: str) -> bool:
    return "://" in text or text.startswith("file:")
