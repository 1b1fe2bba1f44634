"""A run's device and number format, and the torch settings for them."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Precision, RuntimeConfig
from .detector import AUTOCAST, check_precision
from .errors import UserError


@dataclass(frozen=True)
class Runtime:
    """The device and number format that a network runs with. Made by `set_up`."""

    device: torch.device
    precision: Precision
    tf32: bool
    channels_last: bool
    deterministic: bool = False

    @property
    def image_dtype(self) -> torch.dtype:
        """Dtype of the images that the input pipeline delivers (RECIPE 6)."""
        return torch.float16 if self.precision is Precision.fp16 else torch.float32

    def autocast(self) -> torch.autocast:
        """Return the context manager for a forward pass."""
        dtype = AUTOCAST[self.precision.value]
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.precision is not Precision.fp32)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to the device and memory format, in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(self.device).to(memory_format=layout)

    def arrange(self, images: Tensor) -> Tensor:
        """Return images N×3×300×300 in the network's memory format; the input is channels last."""
        return images if self.channels_last else images.contiguous()

    def describe(self) -> str:
        """Return device and number format as text for the start-up table."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        layout = "channels last" if self.channels_last else "channels first"
        tf32 = " with TF32 products" if self.tf32 else ""
        steady = ", deterministic" if self.deterministic else ""
        return f"{where}, {self.precision.value}{tf32}, {layout}{steady}"


def set_up(config: RuntimeConfig, device: torch.device) -> Runtime:
    """Check that the device supports the config, and set torch's global switches.

    Raises UserError, naming the key, if it doesn't.
    """
    on_gpu = device.type == "cuda"
    check_precision(config.precision.value, device, "runtime.precision")
    if config.tf32 and not on_gpu:
        raise UserError("runtime.tf32=true needs a GPU; on a CPU give runtime.tf32=false")
    # Not fp32_precision: once it is set, reading these two raises, and torch.compile reads them.
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32
    # Shapes never change, so one search is enough; its choice of algorithms may differ from run to run.
    torch.backends.cudnn.benchmark = on_gpu and not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product
    torch.use_deterministic_algorithms(config.deterministic)
    return Runtime(device, config.precision, config.tf32, config.channels_last, config.deterministic)
