"""The hub page's code as people run it: a script of theirs in a folder of theirs, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssd.boxes import default_boxes
from ssd.detect import detect
from ssd.model import SSD300
from ssd.published import from_published
from tests.hub.checkpoints import golden_weights, published_checkpoint
from tests.web_site import serving

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).parent.parent.parent

# As issued; the lines beyond it are in _AFTER.
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
ALLOWED = {
    "(REPO, 'nvidia_ssd')": "(REPO, 'nvidia_ssd', source='local')",
    "'nvidia_ssd_processing_utils')": "'nvidia_ssd_processing_utils', source='local')",
    "'cuda'": "'cpu'",
}

BEFORE = """
import importlib.util, sys
assert importlib.util.find_spec("hydra") is importlib.util.find_spec("rich") is None
REPO, out, *uris = sys.argv[1:]
path_before = list(sys.path)
"""
OWN_MODULES = """
import ssd, data.loader
assert ssd.MINE and data.loader.MINE, "not the modules beside the script"
"""
AFTER = """
import numpy as np
assert sys.path == path_before
assert sys.modules["ssd"] is ssd and sys.modules["data"] is data and not hasattr(ssd, "hub")
arrays = {}
for i, (bboxes, classes, confidences) in enumerate(best_results_per_input):
    arrays[f"image_{i}"] = inputs[i] / 2 + 0.5
    arrays[f"labels_{i}"] = [classes_to_labels[classes[k] - 1] for k in range(len(bboxes))]
    arrays[f"boxes_{i}"], arrays[f"classes_{i}"], arrays[f"confidences_{i}"] = bboxes, classes, confidences
np.savez(out, **arrays)
"""

# A machine with torch, torchvision, numpy, pillow and matplotlib alone; Python imports this as it starts.
POOR_MACHINE = """
import importlib.machinery, os, socket
MISSING = {
    "hydra", "omegaconf", "nvidia.dali", "pycocotools", "faster_coco_eval", "msgspec", "rich", "tensorboard",
    "skimage", "tqdm", "requests", "yaml", "pytest",
}
find_spec = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name in MISSING else find_spec(name, path, target)
)
if "OFFLINE" in os.environ:
    def refuse(*_):
        raise AssertionError("touched the network")
    socket.socket.connect = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return golden_weights()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two whose middle 300×300 are pixels of theirs: nothing is resized."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    paths = [folder / "a picture.png", folder / "wide.png"]
    Image.fromarray(random.randint(0, 256, (300, 300, 3), dtype=np.uint8)).save(paths[0])
    row, column = np.mgrid[:300, :420]
    disc = 255 * (np.hypot(column - 210, row - 120) < 60)
    Image.fromarray(np.stack([column // 2, row // 2, disc], axis=-1).astype(np.uint8)).save(paths[1])
    return paths


@pytest.fixture(scope="module")
def expected(weights: dict[str, torch.Tensor], pictures: list[Path]) -> list[list[np.ndarray]]:
    """The golden network's detections above 0.40: [boxes_ltrb, classes, confidences] of each picture."""
    network = SSD300("resnet50").eval()
    network.load_state_dict(from_published(weights))
    mean = np.array([0.485, 0.456, 0.406])
    std = np.array([0.229, 0.224, 0.225])
    middles = [shown(pictures[0]), shown(pictures[1])]
    values = np.stack([((middle - mean) / std).transpose(2, 0, 1) for middle in middles])
    with torch.no_grad():
        offsets, logits = network(torch.from_numpy(values.astype(np.float32)))
    found = detect(offsets, logits, default_boxes(), max_detections=20)
    best = [
        [part[each.scores > 0.4].numpy() for part in (each.boxes, each.labels, each.scores)] for each in found
    ]
    assert all(len(each[0]) > 5 for each in best)
    return best


def shown(path: Path) -> np.ndarray:
    """The middle 300×300 of a 300×300 or 420×300 picture, in [0, 1]."""
    values = np.asarray(Image.open(path), dtype=np.float64) / 255
    start = (values.shape[1] - 300) // 2
    return values[:, start : start + 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's project: modules of our names, and a Python with nothing but what the hub asks for."""
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "ssd.py").write_text("MINE = True\n")
    (tmp_path / "project" / "data" / "__init__.py").touch()
    (tmp_path / "project" / "data" / "loader.py").write_text("MINE = True\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POOR_MACHINE)
    return tmp_path


def run_script(
    folder: Path, own_modules_first: bool, uris: list[str], **environment: str
) -> dict[str, np.ndarray]:
    """Run the page's code, the user's own modules imported before or after it, and return what it found."""
    page = PAGE
    for issued, allowed in ALLOWED.items():
        assert page.count(issued) == 1
        page = page.replace(issued, allowed)
    parts = (BEFORE, OWN_MODULES, page, AFTER) if own_modules_first else (BEFORE, page, OWN_MODULES, AFTER)
    script = folder / "project" / "script.py"
    script.write_text("".join(parts))
    out = folder / "found.npz"
    ours = {
        "PYTHONPATH": str(folder / "site"),
        "TORCH_HOME": str(folder / "torch"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(script), str(ROOT), str(out), *uris]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | ours | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return dict(found)


def check(found: dict[str, np.ndarray], expected: list[list[np.ndarray]], pictures: list[Path]) -> None:
    for index, (boxes_ltrb, classes, confidences) in enumerate(expected):
        np.testing.assert_allclose(found[f"image_{index}"], shown(pictures[index]), atol=1e-6)
        assert found[f"classes_{index}"].tolist() == classes.tolist()
        np.testing.assert_allclose(found[f"boxes_{index}"], boxes_ltrb, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[f"confidences_{index}"], confidences, atol=1e-4)
        assert len(found[f"labels_{index}"]) == len(classes)


def test_offline_with_a_file_and_own_modules_imported_before(
    folder: Path, weights: dict[str, torch.Tensor], pictures: list[Path], expected: list[list[np.ndarray]]
):
    file = folder / "nvidia_ssdpyt_amp_200703.pt"
    file.write_bytes(published_checkpoint(weights, prefix=""))
    uris = [str(pictures[0]), pictures[1].as_uri()]
    found = run_script(folder, True, uris, NVIDIA_SSD_WEIGHTS=str(file), OFFLINE="1")
    check(found, expected, pictures)
    assert not (folder / "torch").exists()


def test_all_over_http_and_own_modules_imported_after(
    folder: Path, weights: dict[str, torch.Tensor], pictures: list[Path], expected: list[list[np.ndarray]]
):
    with serving() as site:
        site.files["/files/nvidia.pt"] = published_checkpoint(weights, prefix="module.")
        site.files |= {f"/{index}?size=large": path.read_bytes() for index, path in enumerate(pictures)}
        uris = [f"{site.url}/{index}?size=large" for index in range(len(pictures))]
        found = run_script(folder, False, uris, NVIDIA_SSD_WEIGHTS=f"{site.url}/files/nvidia.pt")
    check(found, expected, pictures)
    assert len(list((folder / "torch" / "hub" / "checkpoints").iterdir())) == 1
