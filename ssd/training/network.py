"""The network of a run: what its weights start from, and how it is wrapped to be trained."""

from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssd.categories import COCO, Categories
from ssd.checkpoint import CheckpointError, load_file
from ssd.config import ModelConfig, RuntimeConfig, require
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.model import SSD300
from ssd.published import load_weights


def build_network(config: ModelConfig, categories: Categories, seed: int) -> tuple[SSD300, str]:
    """Make a network with its first weights: random by seed, ImageNet's backbone, or a detector's checkpoint.

    Returns it and a sentence on where its weights come from.
    Raises UserError where weights don't exist or don't fit, CheckpointError where a file can't be read.
    """
    network = blank_network(config, categories.num_classes, seed)
    if config.checkpoint is not None:
        return network, _load_detector(network, config, categories)
    if config.weights is not None:
        _load_imagenet(network, config)
        return network, f"{config.weights} (backbone), the rest random, seed {seed}"
    return network, f"random, seed {seed}"


def blank_network(config: ModelConfig, num_classes: int, seed: int) -> SSD300:
    """Make a network with random weights."""
    torch.manual_seed(seed)
    network = SSD300(config.backbone.value, num_classes)
    if config.freeze_batchnorm:
        network.freeze_batchnorm()
    return network


def as_trained(network: nn.Module, config: RuntimeConfig, ranks: Ranks) -> nn.Module:
    """Return the network as training calls it: compiled where configured, in DDP where there are ranks."""
    model = cast(nn.Module, torch.compile(network)) if config.compile else network
    if ranks.world_size == 1:
        return model
    # DDP rebuilds its buckets after a process's first step, and from then on sums over 3 and more ranks in
    # another order: a resumed run would differ by rounding. Looking for unused parameters forbids it.
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=config.deterministic,
    )


def _load_imagenet(network: SSD300, config: ModelConfig) -> None:
    """Load model.weights, one of torchvision's names or else a file, into the backbone."""
    name, backbone = str(config.weights), config.backbone.value
    known = {entry.name: entry for entry in torchvision.models.get_model_weights(backbone)}
    try:
        if name in known:
            weights = known[name].get_state_dict(progress=False, check_hash=True)
        elif Path(name).is_file():
            weights = load_file(Path(name))
        else:
            choice = f"give {' or '.join(known)}, a file, or null to train from scratch"
            raise UserError(
                f"model.weights={name}: {backbone} has no such weights and there is no such file; {choice}"
            )
        network.load_imagenet_backbone(weights)
    except OSError as error:
        mend = "download it elsewhere and give model.weights=FILE, or null to train from scratch"
        raise UserError(f"model.weights={name} can't be downloaded ({error}); {mend}") from error
    except CheckpointError as error:
        raise UserError(f"model.weights={name}: {error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _load_detector(network: SSD300, config: ModelConfig, categories: Categories) -> str:
    """Load model.checkpoint, without its class heads where it knows other classes; say what was taken.

    Classes are the same if their names are, in order. A published checkpoint of 81 classes knows COCO's; of
    another one only the number can be compared.
    """
    path = Path(str(config.checkpoint))
    weights = load_weights(path)
    backbone = config.backbone.value
    require(weights.backbone == backbone, "model.backbone", backbone, f"{path} is a {weights.backbone}")
    trained = weights.categories or (COCO if weights.num_classes == COCO.num_classes else None)
    same_number = weights.num_classes == categories.num_classes
    if same_number and (trained is None or trained.names == categories.names):
        network.load_state_dict(weights.model)
        return str(path)
    kept = {key: value for key, value in weights.model.items() if not key.startswith("logit_heads.")}
    network.load_state_dict(kept, strict=False)  # all but these heads: `weights` has exactly an SSD300's keys
    return (
        f"{path}, but for the class heads, which are new: it tells {weights.num_classes - 1} classes apart, "
        f"and the {len(categories.ids)} of the data set are others"
    )
