"""hubconf.py through torch.hub, and the hub page's code as users run it: in their own script."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from ssd import hub
from tests.golden_inputs import published_weights
from tests.web_site import serving

ROOT = Path(__file__).parent.parent

# As published; CHANGED lists what the test must change in it.
PAGE = """
import torch
ssd_model = torch.hub.load(REPO, 'nvidia_ssd')
utils = torch.hub.load(REPO, 'nvidia_ssd_processing_utils')
ssd_model.to('cuda')
ssd_model.eval()
inputs = [utils.prepare_input(uri) for uri in uris]
tensor = utils.prepare_tensor(inputs)
with torch.no_grad():
    detections_batch = ssd_model(tensor)
results_per_input = utils.decode_results(detections_batch)
best_results_per_input = [utils.pick_best(results, 0.40) for results in results_per_input]
classes_to_labels = utils.get_coco_object_dictionary()
"""
CHANGED = {
    "'nvidia_ssd')": "'nvidia_ssd', source='local')",
    "'nvidia_ssd_processing_utils')": "'nvidia_ssd_processing_utils', source='local')",
    "'cuda'": "'cpu'",
}
BEFORE = """
import sys
REPO, out, *uris = sys.argv[1:]
path_before = list(sys.path)
import ssd
"""
AFTER = """
import data
import numpy as np
assert ssd.MINE and data.MINE and sys.modules["ssd"] is ssd and sys.path == path_before
for bboxes, classes, confidences in best_results_per_input:
    labels = [classes_to_labels[classes[idx] - 1] for idx in range(len(bboxes))]
np.savez(out, *inputs, *(part for best in best_results_per_input for part in best))
"""
# A machine with only torch, torchvision, numpy and Pillow; Python imports this at start.
SITE = """
import importlib.machinery
MISSING = {"hydra", "omegaconf", "nvidia.dali", "pycocotools", "msgspec", "rich", "filelock", "tqdm"}
find_spec = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name in MISSING else find_spec(name, path, target)
)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a user's folder: modules with our names, two pictures, and weights in NVIDIA's layout."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "site").mkdir()
    for file, text in (("ssd", "MINE = True"), ("data", "MINE = True"), ("site/sitecustomize", SITE)):
        (folder / f"{file}.py").write_text(text)
    random = np.random.RandomState(0)
    for name, shape in (("a picture.png", (300, 300, 3)), ("wide.png", (300, 420, 3))):
        Image.fromarray(random.randint(0, 256, shape, dtype=np.uint8)).save(folder / name)
    # The heads are scaled down: the golden network's outputs reach 4,000, too much for boxes.
    model = {
        f"module.{key}": value / 256 if key.startswith(("loc.", "conf.")) else value
        for key, value in published_weights("resnet50").items()
    }
    torch.save({"epoch": 65, "model": model}, folder / "nvidia.pt")
    return folder


@pytest.mark.slow
def test_the_pages_code_runs_as_issued(project: Path):
    """It needs no training packages, and works beside modules with our names, imported before and after."""
    page = PAGE
    for issued, changed in CHANGED.items():
        page = page.replace(issued, changed)
    script, out = project / "script.py", project / "found.npz"
    script.write_text(BEFORE + page + AFTER)
    ours = {"PYTHONPATH": str(project / "site"), "TORCH_HOME": str(project / "torch"), "OMP_NUM_THREADS": "1"}
    with serving() as site:
        site.files["/nvidia.pt"] = (project / "nvidia.pt").read_bytes()
        site.files["/wide.png?size=large"] = (project / "wide.png").read_bytes()
        ours["NVIDIA_SSD_WEIGHTS"] = f"{site.url}/nvidia.pt"
        uris = [str(project / "a picture.png"), f"{site.url}/wide.png?size=large"]
        subprocess.run(
            [sys.executable, script, ROOT, out, *uris], cwd=project, env=os.environ | ours, check=True
        )

    inputs = [hub.prepare_input(project / name) for name in ("a picture.png", "wide.png")]
    network = hub.nvidia_ssd(True, "fp32", False, project / "nvidia.pt").eval()
    with torch.no_grad():
        results = hub.decode_results(network(hub.prepare_tensor(inputs)))
    best = [hub.pick_best(each, 0.40) for each in results]
    assert all(len(each[0]) > 5 for each in best)
    with np.load(out) as found:
        for theirs, mine in zip(found.values(), [*inputs, *best[0], *best[1]], strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_ssd_load_needs_no_more(project: Path, tmp_path: Path):
    script = """
import sys, ssd
weights, picture, out = sys.argv[1:]
found = ssd.load(weights, device="cpu").predict(picture, threshold=0.05)
found.draw().save(out)
assert len(found.names) > 5 and "omegaconf" not in sys.modules
"""
    environment = {"PYTHONPATH": f"{project / 'site'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    arguments = (project / "nvidia.pt", project / "wide.png", tmp_path / "drawn.png")
    command = [sys.executable, "-c", script, *arguments]
    subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True)
    assert Image.open(tmp_path / "drawn.png").size == (420, 300)


def load(entry: str, *arguments: object, repository: Path = ROOT, **keywords: object):
    return torch.hub.load(str(repository), entry, *arguments, source="local", **keywords)


@pytest.mark.unit
def test_torch_hub_lists_the_entries_and_their_help_has_every_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "owner_repository_main").symlink_to(ROOT)  # as if fetched from GitHub earlier
    fetched = {"github": "owner/repository:main", "skip_validation": True, "trust_repo": True}
    entries = ["nvidia_ssd", "nvidia_ssd_processing_utils", "ssd300"]
    assert sorted(torch.hub.list(**fetched)) == entries
    for entry in entries:
        said = torch.hub.help(model=entry, **fetched)
        assert all(f"{name}:" in said for name in inspect.signature(getattr(hubconf, entry)).parameters)


@pytest.mark.unit
def test_a_missing_dependency_is_left_to_torch_hub_to_report(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(RuntimeError, match=r"Missing dependencies: .*PIL"):
        load("nvidia_ssd_processing_utils")


@pytest.mark.unit
def test_one_clone_is_loaded_once_and_another_one_replaces_it(tmp_path: Path):
    for name in ("hubconf.py", "ssd"):
        (tmp_path / name).symlink_to(ROOT / name)
    first = load("nvidia_ssd_processing_utils")
    assert load("nvidia_ssd_processing_utils") is first
    load("nvidia_ssd_processing_utils", repository=tmp_path)
    assert sys.modules["ssd300_hub.boxes"].__file__ == str(tmp_path / "ssd" / "boxes.py")


@pytest.mark.unit
def test_the_arguments_arrive(project: Path):
    half = load("nvidia_ssd", True, "fp16", True, project / "nvidia.pt")  # torch.hub takes force_reload
    assert half.backbone.conv1.weight.dtype == torch.float16
    with pytest.raises(ValueError, match=r"num_classes=4: .* has 81"):
        load("ssd300", "resnet50", num_classes=4, checkpoint=project / "nvidia.pt")
