import pytest
import torch

from ssd.config import Precision, RuntimeConfig
from ssd.errors import UserError
from ssd.runtime import set_up

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def test_what_a_cpu_cannot_do_is_refused_with_the_fix():
    with pytest.raises(UserError, match=r"runtime\.precision=bf16"):
        set_up(RuntimeConfig(precision=Precision.fp16), CPU)
    with pytest.raises(UserError, match=r"runtime\.tf32=false"):
        set_up(RuntimeConfig(precision=Precision.fp32, tf32=True), CPU)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("precision", "computed"), [(Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)]
)
def test_network_and_images_get_the_configured_format(
    precision: Precision, computed: torch.dtype, channels_last: bool
):
    runtime = set_up(RuntimeConfig(precision=precision, channels_last=channels_last), CPU)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = runtime.place(torch.nn.Conv2d(4, 4, 3))
    images = runtime.arrange(torch.ones(2, 8, 8, 4).permute(0, 3, 1, 2))
    with runtime.autocast():
        made = network(images)
    assert (made.dtype, runtime.image_dtype) == (computed, torch.float32)
    assert all(each.is_contiguous(memory_format=layout) for each in (network.weight, images, made))


@pytest.mark.parametrize("tf32", [True, False])
def test_whoever_asks_for_tf32_is_answered(tf32: bool):
    """Reading the setting works the way torch.compile and cudnn.flags read it."""
    try:
        set_up(RuntimeConfig(precision=Precision.fp32, tf32=tf32), torch.device("cuda"))
        with torch.backends.cudnn.flags(enabled=True):
            pass
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32
        assert (torch.backends.cudnn.conv.fp32_precision == "tf32") == tf32
    finally:
        set_up(RuntimeConfig(precision=Precision.fp32), CPU)
