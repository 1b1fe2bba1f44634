"""A fake GPU: tensors that claim to be on it, and a count of how often the host would wait for it."""

from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
# Operators that return a Python number or a size that depends on values; copies and boolean masks wait too.
_WAITING = {"_local_scalar_dense", "bincount", "equal", "masked_select", "nonzero"}
_WAITING |= {"is_nonzero", "item", "nonzero_numpy"}  # their names in inference mode


class OnGpu(Tensor):
    """A CPU tensor that claims to be on a GPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=GPU
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_dispatch__ = None  # only FakeGpu can compute with it


class FakeGpu(TorchDispatchMode):
    """Computes with OnGpu tensors. `waits` counts, by operator, how often the host would wait for a GPU.

    Raises AssertionError if an operator other than a copy mixes GPU tensors with CPU tensors that have axes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._lazy_init, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None
        torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.cuda._lazy_init = self._lazy_init

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operator.overloadpacket.__name__, dict(kwargs or {})
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(isinstance(each, OnGpu) for each in given)
        mixed = there and any(not isinstance(each, OnGpu) and each.dim() for each in given)
        assert not mixed or name == "copy_", operator
        goes_there = there
        if kwargs.get("device"):
            goes_there = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        masked = name == "index" and any(each.dtype is torch.bool for each in args[1] if each is not None)
        copied = bool(given) and there != goes_there
        self.waits[name] += copied or (there and (masked or name in _WAITING))
        args, kwargs = tree_map_only(OnGpu, lambda each: each.values, (args, kwargs))
        result = operator(*args, **kwargs)
        return tree_map_only(Tensor, OnGpu, result) if goes_there else result
