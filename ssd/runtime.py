"""Device and number format of a run, turned into torch's settings."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Precision, RuntimeConfig
from .detector import AUTOCAST, check_precision
from .errors import UserError


@dataclass(frozen=True)
class Runtime:
    """Where and in which number format a network runs. Made by `set_up`."""

    device: torch.device
    precision: Precision
    tf32: bool
    channels_last: bool
    deterministic: bool = False

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of the images that the input pipeline delivers (RECIPE 6)."""
        return torch.float16 if self.precision is Precision.fp16 else torch.float32

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        dtype = AUTOCAST[self.precision.value]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision is not Precision.fp32)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and memory format, in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=layout)

    def arrange(self, images: Tensor) -> Tensor:
        """Return images N×3×300×300 in the network's memory format; they arrive channels last."""
        return images if self.channels_last else images.contiguous()

    def describe(self) -> str:
        """Say it for the start-up table: where and in which format."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        layout = "channels last" if self.channels_last else "channels first"
        tf32 = " with TF32 products" if self.tf32 else ""
        steady = ", deterministic" if self.deterministic else ""
        return f"{where}, {self.precision.value}{tf32}, {layout}{steady}"


def set_up(config: RuntimeConfig, device: torch.device) -> Runtime:
    """Check that the device can do what the config asks, and set torch's switches.

    Raises UserError naming the key where it can't.
    """
    on_gpu = device.type == "cuda"
    check_precision(config.precision.value, device, "runtime.precision")
    if config.tf32 and not on_gpu:
        raise UserError("runtime.tf32=true needs a GPU; on a CPU give runtime.tf32=false")
    # Not by fp32_precision: after that the getters of these two raise, and torch.compile asks them.
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    # Shapes never change, so the search pays once; which algorithm wins may differ from run to run.
    torch.backends.cudnn.benchmark = on_gpu and not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
    torch.use_deterministic_algorithms(config.deterministic)
    return Runtime(device, config.precision, config.tf32, config.channels_last, config.deterministic)
