"""SSD300: a ResNet with two heads on each of six detection maps (RECIPE 1)."""

from collections import OrderedDict
from collections.abc import Mapping
from textwrap import shorten
from typing import Self

import torch
import torchvision
from torch import Tensor, nn

from .boxes import BOXES_PER_CELL, IMAGE_SIZE

# Channels of the six detection maps, RECIPE 1.
_MAP_CHANNELS = {
    "resnet18": (256, 512, 512, 256, 256, 128),
    "resnet34": (256, 512, 512, 256, 256, 256),
    "resnet50": (1024, 512, 512, 256, 256, 256),
    "resnet101": (1024, 512, 512, 256, 256, 256),
    "resnet152": (1024, 512, 512, 256, 256, 256),
}
BACKBONES = tuple(_MAP_CHANNELS)

# One entry per extra block, which comes before each map except the first: channels between its two
# convolutions, then stride and padding of the second. RECIPE 1.
_EXTRA_BLOCKS = ((256, 2, 1), (256, 2, 1), (128, 2, 1), (128, 1, 0), (128, 1, 0))


class SSD300(nn.Module):
    """The detector.

    backbone: one of BACKBONES. num_classes: background included. weights: torchvision ImageNet weights to
    download, such as "IMAGENET1K_V2"; None downloads nothing.
    Raises ValueError if backbone is unknown or num_classes is less than 2.
    """

    def __init__(self, backbone: str = "resnet50", num_classes: int = 81, weights: str | None = None) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"model.backbone={backbone!r} is unknown; take one of {', '.join(BACKBONES)}")
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: it counts the background, so it is 2 or more")
        self.num_classes = num_classes
        self.batchnorm_frozen = False
        channels = _MAP_CHANNELS[backbone]
        self.backbone = _cut_resnet(torchvision.models.get_model(backbone, weights=weights))
        self.extra_blocks = nn.ModuleList(
            _extra_block(channels[index], between, channels[index + 1], stride, padding)
            for index, (between, stride, padding) in enumerate(_EXTRA_BLOCKS)
        )
        self.offset_heads = _heads(channels, outputs_per_box=4)
        self.logit_heads = _heads(channels, outputs_per_box=num_classes)
        for added in (self.extra_blocks, self.offset_heads, self.logit_heads):
            for parameter in added.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the offsets and class logits of every default box.

        images: N×3×300×300, ImageNet-normalized. Returns offsets N×4×A and logits N×num_classes×A, with the
        default boxes in the order of `ssd.boxes.default_boxes`.
        Raises ValueError for images of another shape.
        """
        if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"SSD300 takes images N×3×{IMAGE_SIZE}×{IMAGE_SIZE}, got {tuple(images.shape)}")
        maps = [self.backbone(images)]
        for block in self.extra_blocks:
            maps.append(block(maps[-1]))
        return (
            _all_outputs(self.offset_heads, maps, outputs_per_box=4),
            _all_outputs(self.logit_heads, maps, outputs_per_box=self.num_classes),
        )

    def freeze_batchnorm(self) -> None:
        """Freeze every BatchNorm's running statistics: from now on, training uses them without updating them.

        BatchNorm weights and biases still train. The state dict does not store this: call it after building.
        """
        self.batchnorm_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen BatchNorms (`freeze_batchnorm`) stay in evaluation mode."""
        super().train(mode)
        if self.batchnorm_frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def load_imagenet_backbone(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load ImageNet weights with the keys of torchvision's ResNet into the backbone.

        layer4 and fc, which SSD300 does not have, are ignored.
        Raises ValueError naming the keys that are missing, unknown or of the wrong shape.
        """
        dropped = ("layer4.", "fc.")
        kept = {str(key): state_dict[key] for key in state_dict if not str(key).startswith(dropped)}
        try:
            self.backbone.load_state_dict(kept)
        except RuntimeError as error:
            raise ValueError(
                f"ImageNet weights must be of the same ResNet as model.backbone: {one_line(error)}"
            ) from error


def _cut_resnet(resnet: nn.Module) -> nn.Sequential:
    """Cut torchvision's ResNet after layer3 and keep layer2's resolution in layer3: 38×38 for 300×300."""
    first_block = resnet.get_submodule("layer3.0")
    for name in ("conv1", "conv2", "downsample.0"):
        convolution = first_block.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (1, 1)
    kept = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
    return nn.Sequential(OrderedDict((name, resnet.get_submodule(name)) for name in kept))


def _extra_block(inputs: int, between: int, outputs: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(inputs, between, kernel_size=1, bias=False),
            bn1=nn.BatchNorm2d(between),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(between, outputs, kernel_size=3, stride=stride, padding=padding, bias=False),
            bn2=nn.BatchNorm2d(outputs),
            relu2=nn.ReLU(inplace=True),
        )
    )


def _heads(channels: tuple[int, ...], outputs_per_box: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv2d(inputs, outputs_per_box * boxes, kernel_size=3, padding=1)
        for inputs, boxes in zip(channels, BOXES_PER_CELL, strict=True)
    )


def _all_outputs(heads: nn.ModuleList, maps: list[Tensor], outputs_per_box: int) -> Tensor:
    """Run each head on its map and concatenate the outputs: N×outputs_per_box×A."""
    outputs = [head(features) for head, features in zip(heads, maps, strict=True)]
    # A head's channels are ordered by output first, then by the cell's box, as published.
    return torch.cat([output.reshape(len(output), outputs_per_box, -1) for output in outputs], dim=2)


def one_line(error: RuntimeError) -> str:
    """Return the start of load_state_dict's message about keys and tensors that don't fit, on one line."""
    return shorten(str(error), 500, placeholder=" …")
