"""Where the host would wait for a GPU, counted on a CPU."""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Numbers that Python is given, copies to the host, and results whose size follows from values.
_WAITING = {"bincount", "cpu", "equal", "item", "masked_select", "nonzero", "tolist", "unique"}
_WAITING |= {"__bool__", "__float__", "__index__", "__int__"}


class HostWaits(TorchFunctionMode):
    """Counts by name the calls at which the host would wait, were the tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = any(isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in index)
        elif name == "repeat_interleave":
            waits = kwargs.get("output_size") is None
        else:
            waits = name in _WAITING
        self.counts[name] += waits
        return func(*args, **kwargs)
