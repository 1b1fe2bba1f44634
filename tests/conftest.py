"""Fixtures shared by several test folders."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from data.demo import generate
from ssd.config import Device, Precision, RuntimeConfig, TrainConfig
from ssd.training.session import Session, open_session
from tests.bench import IMAGES, ROOT, Bench

# The tests' tensors are small: a second thread costs more in waiting than it saves, in launched runs too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole runs first, so that neither of two test processes is left with all of them at the end."""
    marks = ("distributed", "slow")
    items.sort(key=lambda item: [item.get_closest_marker(mark) is None for mark in marks])


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return a folder of real photographs in COCO layout: SSD_TEST_DATA, or shared/data beside the clone."""
    folder = Path(os.environ.get("SSD_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real photographs: no folder {folder} (set SSD_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests out of the user's data cache; subprocesses inherit the variable."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Make a folder for whole runs, with their data set; all test processes share it."""
    base = tmp_path_factory.getbasetemp()
    bench = Bench((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs")
    bench.folder.mkdir(exist_ok=True)
    with FileLock(bench.folder / "demo.lock"):
        if not bench.data.exists():
            generate(bench.data, IMAGES, 5)
    return bench


@pytest.fixture
def name(request: pytest.FixtureRequest, bench: Bench) -> Iterator[str]:
    """Name the run of one test, and delete its folder after the test: checkpoints add up to gigabytes."""
    name = re.sub(r"\W", "_", request.node.name)
    yield name
    shutil.rmtree(bench.folder / name, ignore_errors=True)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """Open a session in this process, on the CPU in float32, with tmp_path/run as the run's folder."""
    runtime = RuntimeConfig(device=Device.cpu, precision=Precision.fp32)
    with open_session(TrainConfig(name="run", runtime=runtime), tmp_path / "run") as opened:
        yield opened
