from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import DistStoreError, HashStore

from ssd.config import Device
from ssd.distributed import Ranks, choose_device, open_ranks
from ssd.errors import UserError

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
LONG, SHORT = timedelta(seconds=30), timedelta(milliseconds=100)


def two_ranks() -> tuple[Ranks, Ranks]:
    store = HashStore()
    return Ranks(CPU, rank=0, world_size=2, store=store), Ranks(CPU, rank=1, world_size=2, store=store)


def test_one_process_exchanges_with_itself():
    with open_ranks(Device.cpu, timedelta(minutes=1)) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
        assert ranks.gather("x") == ["x"]
        assert ranks.on_main(lambda: 3, SHORT) == 3


def test_every_rank_gets_the_result_of_rank_0s_work_or_its_failure():
    main, other = two_ranks()

    def fail() -> None:
        raise UserError("a file cut short")

    with ThreadPoolExecutor() as pool:
        for value in (0.1, 0.2):
            waiting = pool.submit(other.on_main, fail, LONG)  # rank 1 doesn't call it
            assert main.on_main(lambda value=value: value, LONG) == value
            assert waiting.result() == value
        waiting = pool.submit(other.on_main, lambda: 0, LONG)
        with pytest.raises(UserError, match="a file cut short"):
            main.on_main(fail, LONG)
        with pytest.raises(UserError, match="another rank can't go on"):
            waiting.result()


def test_a_waiting_rank_gives_up_after_the_calls_own_timeout():
    _, other = two_ranks()
    with pytest.raises(DistStoreError):
        other.on_main(lambda: 0, SHORT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error():
    assert choose_device(Device.auto, local_rank=0) == CPU
    with pytest.raises(UserError, match=r"runtime\.device=cuda.*give runtime\.device=cpu"):
        choose_device(Device.cuda, local_rank=0)
