"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

# The tests' tensors are small: a second thread costs more in waiting than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real photographs in COCO layout: SSD_TEST_DATA, or shared/data beside the clone."""
    folder = Path(os.environ.get("SSD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real photographs: no folder {folder} (set SSD_TEST_DATA)")
    return folder
