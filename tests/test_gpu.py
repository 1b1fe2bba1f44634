"""Tests that need a GPU. Those that can also run on the CPU, which tests the tests."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from data.demo import generate
from data.graph import GraphOptions
from data.index import read_index
from data.loader import DaliTrainLoader
from data.sampling import BatchPlan
from ssd.batches import TrainBatch
from ssd.boxes import default_boxes
from ssd.checkpoint import learned
from ssd.config import Device, OptimizerConfig, Precision, RuntimeConfig
from ssd.detect import detect
from ssd.distributed import choose_device
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from ssd.runtime import Runtime, set_up
from ssd.training.guards import FiniteGuard
from ssd.training.optimizer import build_optimizer
from ssd.training.step import TrainStep
from tests.bench import Bench, succeeded, without_times
from tests.ssd.training.samples import small_networks

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 1, reason="needs a CUDA device")]
needs_two_gpus = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")]
DEVICES = [pytest.param("cpu", marks=pytest.mark.unit), pytest.param("cuda", marks=needs_gpu)]


@pytest.fixture
def _torchs_switches() -> Iterator[None]:
    """Undo the process-wide settings of ssd.runtime.set_up."""
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


def batches(folder: Path, device: torch.device, dtype: torch.dtype, count: int) -> list[TrainBatch]:
    """Return the first training batches of 4 images of the embedded set, made for this device."""
    index = read_index(folder / "annotations" / "instances_train2017.json", folder / "train2017")
    device_id = torch.cuda.current_device() if device.type == "cuda" else None
    made = DaliTrainLoader(BatchPlan(index, 4, seed=0), GraphOptions(4, dtype, 1, device_id)).batches(0)
    return [next(made) for _ in range(count)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "demo"
    generate(folder, 10, 2)
    return folder


def make_network(runtime: Runtime) -> torch.nn.Module:
    torch.manual_seed(0)
    with small_networks() if runtime.device.type == "cpu" else nullcontext():
        return runtime.place(SSD300("resnet18", num_classes=8)).train()


@pytest.mark.parametrize("name", DEVICES)
def test_the_graph_gives_a_gpu_what_it_gives_a_cpu(name: str, demo: Path):
    """Decoders and filters round differently; a shift, a swap or a missed flip changes far more than that."""
    device, cpu = choose_device(Device(name), local_rank=0), torch.device("cpu")
    pairs = zip(batches(demo, device, torch.float32, 2), batches(demo, cpu, torch.float32, 2), strict=True)
    for there, here in pairs:
        assert there.images.device.type == there.labels.device.type == name
        apart = (there.images.cpu() - here.images).abs() * 0.225 * 255  # in pixel values, 0 to 255
        assert apart.mean() < 2
        assert torch.equal(there.labels.cpu(), here.labels)
        torch.testing.assert_close(there.target_offsets.cpu(), here.target_offsets)


@pytest.mark.parametrize("name", DEVICES)
def test_steps_under_a_loss_scaler_are_taken_and_learn(name: str, demo: Path):
    precision = Precision.fp16 if name == "cuda" else Precision.bf16  # fp16 takes minutes on a CPU
    runtime = Runtime(choose_device(Device(name), 0), precision, tf32=False, channels_last=True)
    network = make_network(runtime)
    scaler = torch.amp.GradScaler(name)
    optimizer, guard = build_optimizer(network, OptimizerConfig()), FiniteGuard(runtime.device)
    step = TrainStep(network, optimizer, scaler, guard, runtime, MultiBoxLoss())
    (batch,) = batches(demo, runtime.device, runtime.image_dtype, 1)
    losses = []
    for index in range(8):
        parts, taken = step(batch, index, 1e-3)
        if taken:
            losses.append(float(parts.sum()))
    assert len(losses) >= 4  # the scale may have to fall from 2^16 first
    assert losses[-1] < losses[0]
    assert guard.read() is None
    assert all(parameter.dtype is torch.float32 for parameter in network.parameters())


def passed(runtime: Runtime, batch: TrainBatch) -> list[torch.Tensor]:
    """Return the gradients and detections of a newly made network."""
    network = make_network(runtime)
    with runtime.autocast():
        offsets, logits = network(runtime.arrange(batch.images))
    MultiBoxLoss()(offsets, logits, batch.target_offsets, batch.labels).backward()
    found = detect(offsets, logits, default_boxes().to(runtime.device))
    assert any(len(each.boxes) for each in found)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [*gradients, *(tensor for each in found for tensor in each)]


@pytest.mark.usefixtures("_torchs_switches")
@pytest.mark.parametrize("name", DEVICES)
def test_deterministic_passes_are_equal_to_the_last_bit(name: str, demo: Path):
    precision = Precision.fp16 if name == "cuda" else Precision.bf16
    config = RuntimeConfig(device=Device(name), precision=precision, deterministic=True)
    runtime = set_up(config, choose_device(config.device, local_rank=0))
    (batch,) = batches(demo, runtime.device, runtime.image_dtype, 1)
    once, again = passed(runtime, batch), passed(runtime, batch)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "ranks"),
    [
        pytest.param("amp", 1, marks=needs_gpu),
        pytest.param("tf32", 1, marks=needs_gpu),
        pytest.param("amp", 2, marks=[*needs_two_gpus, pytest.mark.distributed]),
    ],
)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(runtime: str, ranks: int, bench: Bench):
    same = (f"runtime={runtime}", "runtime.deterministic=true", "training.compare_replicas_every=2")
    whole, stopped = f"whole_{runtime}_{ranks}", f"stopped_{runtime}_{ranks}"
    succeeded(bench.train(whole, *same, ranks=ranks))
    succeeded(bench.train(stopped, *same, "schedule.max_steps=4", ranks=ranks))
    succeeded(bench.train(stopped, *same, ranks=ranks))
    assert learned(bench.checkpoint(stopped)) == learned(bench.checkpoint(whole))
    assert without_times(bench.records(stopped))[-1] == without_times(bench.records(whole))[-1]
