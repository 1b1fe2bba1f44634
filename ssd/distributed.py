"""The process group. It is set up only here; other code uses `Ranks` for rank numbers and communication."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .config import Device
from .errors import UserError, require

Value = TypeVar("Value")

ANOTHER_RANK_FAILED = "another rank can't go on; its message says why"
_FAILED = "failed"  # stored instead of a result; not valid json


@dataclass
class Ranks:
    """This process's rank, and communication with the other ranks. With one process, exchanges do nothing.

    store: None if the run has one process. cpu_group: on GPUs, a gloo group in addition to NCCL's, so that
    exchanging Python objects never waits for a device; None means the default group, which is gloo on CPUs.
    """

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    store: Store | None = None
    cpu_group: dist.ProcessGroup | None = None
    _announcements: int = field(default=0, repr=False)

    @property
    def is_main(self) -> bool:
        """Tell whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def highest(self, value: int) -> int:
        """Return the highest of all ranks' values, on every rank, without waiting for a device."""
        return self.begin_highest(value)()

    def begin_highest(self, value: int) -> Callable[[], int]:
        """Send a value to the other ranks without waiting. Call the result to wait for the highest value."""
        if self.world_size == 1:
            return lambda: value
        highest = torch.tensor(value)
        exchange = dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.cpu_group, async_op=True)

        def wait() -> int:
            exchange.wait()
            return int(highest)

        return wait

    def on_all(self, work: Callable[[], Value]) -> Value:
        """Run each rank's own work. If it raises UserError on any rank, every rank raises UserError."""
        try:
            result = work()
        except UserError:
            self.highest(1)
            raise
        if self.highest(0):
            raise UserError(ANOTHER_RANK_FAILED)
        return result

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's Python object, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values  # type: ignore[return-value]  # each was filled

    def take_main(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def on_main(self, work: Callable[[], Value], timeout: timedelta) -> Value:
        """Run long host work on rank 0. The other ranks wait on the store for its result, which must be json.

        They don't wait in a collective, so the timeout is separate and NCCL's watchdog isn't involved. Raises
        UserError on every rank if the work raises it; DistStoreError on a waiting rank after `timeout`.
        """
        if self.store is None:
            return work()
        key = f"result/{self._announcements}"
        self._announcements += 1
        if self.is_main:
            try:
                result = work()
            except UserError:
                self.store.set(key, _FAILED)
                raise
            self.store.set(key, json.dumps(result))
            return result
        self.store.wait([key], timeout)
        announced = self.store.get(key).decode()
        if announced == _FAILED:
            raise UserError(ANOTHER_RANK_FAILED)
        return json.loads(announced)  # type: ignore[no-any-return]  # what rank 0 returned


def choose_device(choice: Device, local_rank: int) -> torch.device:
    """Turn runtime.device into this rank's device. Raises UserError if there is no such GPU."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice is Device.cpu or (choice is Device.auto and not found):
        return torch.device("cpu")
    fix = "start fewer ranks or give runtime.device=cpu"
    fix = f"local rank {local_rank} needs its own GPU, {found} were found; {fix}"
    require(local_rank < found, "runtime.device", choice.value, fix)
    return torch.device("cuda", local_rank)


@contextmanager
def open_ranks(choice: Device, timeout: timedelta) -> Iterator[Ranks]:
    """Join the process group given by torchrun's variables (NCCL on GPUs, gloo on CPUs); leave it at exit.

    Without these variables, or with one process, there is no group. timeout: for each exchange between ranks.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(choice, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(device)
        return
    store, rank, _ = next(rendezvous("env://"))
    # torchrun uses one store for all attempts, so restarted ranks would find the dead ranks' addresses there.
    # With TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, needed on several hosts, each attempt gets its own store.
    if os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        store=PrefixStore("process_group", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if on_gpu else None,
    )
    try:
        cpu_group = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else None
        yield Ranks(
            device=device,
            rank=rank,
            local_rank=local_rank,
            world_size=world_size,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            store=PrefixStore("ranks", store),
            cpu_group=cast(dist.ProcessGroup | None, cpu_group),
        )
    finally:
        dist.destroy_process_group()
