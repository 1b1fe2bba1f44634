"""scripts/inference.ipynb as Jupyter runs it, in its own kernel, on a run of twelve steps."""

import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from ssd.checkpoint import load_run, write
from tests.bench import LIMIT_S, ROOT, Bench

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "scripts" / "inference.ipynb"
FIGURES = {"hub-show": 1, "curves": 1, "pictures-show": 2, "classes-ap": 1}  # by cell id
NOWHERE = "http://127.0.0.1:9"


def execute(run: Path, data: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Run all cells in the notebook's folder, on a CPU; downloads fail because the proxy doesn't exist."""
    monkeypatch.setenv("SSD_RUN", str(run))
    monkeypatch.setenv("SSD_DATA", str(data))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("https_proxy", NOWHERE)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    return NotebookClient(nbformat.read(NOTEBOOK, as_version=4), timeout=LIMIT_S, resources=where).execute()


@pytest.fixture(scope="module")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a finished run and make its best checkpoint find the first class on every picture."""
    folder = tmp_path_factory.mktemp("notebook") / "run"
    shutil.copytree(bench.folder / bench.uninterrupted(1), folder)
    best = folder / "checkpoints" / "best.pt"
    state = load_run(best)
    # After twelve steps nothing would be drawn.
    boxes_of_last_map, first_label = 4, 1
    bias = state["model"]["logit_heads.5.bias"]
    bias[first_label * boxes_of_last_map :][:boxes_of_last_map] = 20
    write(best, state)
    return folder


def test_every_cell_runs_and_every_figure_comes_out(
    trained: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    executed = execute(trained, bench.data, tmp_path, monkeypatch)
    drawn = Counter(
        cell.id
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )
    assert drawn == FIGURES
    assert not (tmp_path / "torch").exists()  # torch.hub's folder


def test_without_a_run_it_says_to_make_one(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(CellExecutionError, match=r"no .*best\.pt: run `make demo` first"):
        execute(tmp_path / "missing", bench.data, tmp_path, monkeypatch)


def test_it_is_committed_without_outputs():
    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
