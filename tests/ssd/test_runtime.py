import pytest
import torch

from ssd.config import Precision, RuntimeConfig
from ssd.errors import UserError
from ssd.runtime import set_up

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        (RuntimeConfig(precision=Precision.fp16), r"runtime\.precision=bf16"),
        (RuntimeConfig(precision=Precision.fp32, tf32=True), r"runtime\.tf32=false"),
    ],
    ids=["fp16", "tf32"],
)
def test_what_a_cpu_cannot_do_is_refused_with_the_fix(config: RuntimeConfig, fix: str):
    with pytest.raises(UserError, match=fix):
        set_up(config, CPU)


@pytest.mark.parametrize(
    ("precision", "computed"), [(Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)]
)
def test_the_forward_pass_runs_in_the_configured_format(precision: Precision, computed: torch.dtype):
    runtime = set_up(RuntimeConfig(precision=precision), CPU)
    with runtime.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is computed
    assert runtime.image_dtype is torch.float32


@pytest.mark.parametrize("channels_last", [True, False])
def test_network_and_images_get_the_configured_layout(channels_last: bool):
    runtime = set_up(RuntimeConfig(precision=Precision.fp32, channels_last=channels_last), CPU)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = runtime.place(torch.nn.Conv2d(4, 4, 3))
    delivered = torch.ones(2, 8, 8, 4).permute(0, 3, 1, 2)
    images = runtime.arrange(delivered)
    assert network.weight.is_contiguous(memory_format=layout)
    assert images.is_contiguous(memory_format=layout)
    assert network(images).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("tf32", [True, False])
def test_whoever_asks_for_tf32_is_answered(tf32: bool):
    """As torch.compile asks, and cudnn.flags."""
    try:
        set_up(RuntimeConfig(precision=Precision.fp32, tf32=tf32), torch.device("cuda"))
        with torch.backends.cudnn.flags(enabled=True):
            pass
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    finally:
        set_up(RuntimeConfig(precision=Precision.fp32), CPU)
