"""Launch files for clusters can't run here: what can be checked of their text."""

import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent.parent / "scripts" / "cluster"


def test_the_slurm_file_is_a_script_that_bash_can_parse():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sbatch")], check=True)


def torchrun_arguments(words: list[str]) -> list[str]:
    """Parse as torchrun does; return what the training script gets."""
    options = get_args_parser().parse_args(words)
    assert "SIGUSR1" in options.signals_to_handle  # else it would kill torchrun and leave the ranks behind
    assert options.training_script == "train.py"
    arguments: list[str] = options.training_script_args
    return arguments


def test_torchrun_takes_the_slurm_files_arguments():
    text = (FOLDER / "slurm.sbatch").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "/torchrun " in line]
    torchrun_arguments(line.partition("/torchrun ")[2].split())


def test_torchrun_takes_the_kubernetes_files_arguments():
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    (container,) = documents[1]["spec"]["template"]["spec"]["containers"]
    assert container["command"][0] == "torchrun"
    assert "experiment=coco_8x128" in torchrun_arguments(container["command"][1:])
    volumes = {volume["name"] for volume in documents[1]["spec"]["template"]["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
