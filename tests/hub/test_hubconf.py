import inspect
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hubconf
from ssd.checkpoint import write
from ssd.model import SSD300
from tests.golden_inputs import forward_images
from tests.hub.checkpoints import our_checkpoint, saved
from tests.web_site import serving

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent


def load(entry: str, *arguments: object, **keywords: object):
    return torch.hub.load(str(ROOT), entry, *arguments, source="local", **keywords)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Arguments that name this clone as torch.hub finds one that it fetched from GitHub before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_repository_main").symlink_to(ROOT)
    return {"github": "owner/repository:main", "skip_validation": True, "trust_repo": True}


def test_torch_hub_lists_the_three_entries_and_nothing_else(fetched: dict[str, object]):
    assert sorted(torch.hub.list(**fetched)) == ["nvidia_ssd", "nvidia_ssd_processing_utils", "ssd300"]


def test_torch_hub_shows_each_entrys_help(fetched: dict[str, object]):
    for entry, said in (
        ("nvidia_ssd", "NVIDIA_SSD_WEIGHTS"),
        ("ssd300", "num_classes"),
        ("nvidia_ssd_processing_utils", "prepare_input"),
    ):
        assert said in torch.hub.help(model=entry, **fetched)


def test_every_argument_stands_in_the_help():
    for entry in (hubconf.nvidia_ssd, hubconf.ssd300):
        assert all(f"{name}:" in entry.__doc__ for name in inspect.signature(entry).parameters)


def test_a_missing_dependency_is_what_torch_hub_says():
    """Not an ImportError from within: hubconf alone must import without torchvision and Pillow."""
    missing = "import sys; sys.modules['PIL'] = sys.modules['torchvision'] = None\nimport hubconf"
    done = subprocess.run(
        [sys.executable, "-c", missing], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"PIL", "torchvision"} < set(hubconf.dependencies)


def test_the_users_modules_and_path_stay_as_they_were():
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("ssd", "data")}
    path = list(sys.path)
    utils = load("nvidia_ssd_processing_utils")
    assert utils.__name__ == "ssd300_hub.hub.processing"
    assert sys.path == path
    after = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("ssd", "data")}
    assert after == before


def test_two_loads_give_one_module():
    """Or a second load would make objects of the first look foreign."""
    assert load("nvidia_ssd_processing_utils") is load("nvidia_ssd_processing_utils")


def test_another_clones_package_is_replaced(tmp_path: Path):
    for name in ("hubconf.py", "ssd"):
        (tmp_path / name).symlink_to(ROOT / name)
    first = load("nvidia_ssd_processing_utils")
    second = torch.hub.load(str(tmp_path), "nvidia_ssd_processing_utils", source="local")
    assert second.__file__ == str(tmp_path / "ssd" / "hub" / "processing.py")
    assert sys.modules["ssd300_hub.boxes"].__file__ == str(tmp_path / "ssd" / "boxes.py")
    third = load("nvidia_ssd_processing_utils")
    assert third.__file__ == first.__file__
    assert third is not first


def test_the_arguments_arrive(tmp_path: Path):
    network = SSD300("resnet18", 3)
    write(tmp_path / "best.pt", our_checkpoint(network, ["cell", "platelet"]))
    half = load("nvidia_ssd", weights=tmp_path / "best.pt", model_math="fp16")
    assert half.category_names == ("cell", "platelet")
    assert half.backbone.conv1.weight.dtype == torch.float16
    ours = load("ssd300", "resnet18", num_classes=3, checkpoint=tmp_path / "best.pt").eval()
    restored = torch.load(io.BytesIO(saved(ours)), weights_only=False)
    with torch.no_grad():
        expected, found = network.eval()(forward_images()), restored(forward_images())
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="leave num_classes out"):
        load("ssd300", "resnet18", 4, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="leave one out"):
        load("nvidia_ssd", False, weights=tmp_path / "best.pt")


def test_force_reload_passes_torch_hub_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = SSD300("resnet18", 2)
    with serving() as site:
        for name in ("old", "new"):
            write(tmp_path / "w.pt", our_checkpoint(network, [name]))
            site.files["/w.pt"] = (tmp_path / "w.pt").read_bytes()
            place = f"{site.url}/w.pt"
            assert load("nvidia_ssd", weights=place).category_names == ("old",)
        assert load("nvidia_ssd", True, "fp32", True, place).category_names == ("new",)
