"""Launch files for clusters: stubs play Slurm's commands, torchrun's own parser reads what it is given."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent.parent / "scripts" / "cluster"


# scontrol names the machines, and writes down what else it is told; srun writes down its arguments.
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; else echo "$*" >> scontrol.txt; fi',
    "srun": 'printf "%s\\n" "$@" > srun.txt\n[ -z "$PREEMPTED" ] || touch runs/coco/preempted\nexit 3',
}


def submit(folder: Path, *overrides: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the Slurm file as Slurm would, in a folder that has the stubs and a run's folder."""
    for name, script in STUBS.items():
        stub = folder / name
        stub.write_text(f"#!/bin/bash\n{script}\n")
        stub.chmod(0o755)
    (folder / "runs" / "coco").mkdir(parents=True)
    (folder / "runs" / "coco" / "preempted").touch()  # an earlier run's
    return subprocess.run(
        ["bash", str(FOLDER / "slurm.sbatch"), "experiment=coco_8x128", *overrides],
        cwd=folder,
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "[one-two]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "64",
            "PREEMPTED": "",
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("restarts", "attempt"), [({}, "7-0"), ({"SLURM_RESTART_COUNT": "2"}, "7-2")])
def test_the_slurm_file_starts_torchrun_when_submitted_and_when_queued_again(
    restarts: dict[str, str], attempt: str, tmp_path: Path
):
    result = submit(tmp_path, "name=coco", **restarts)
    assert (result.returncode, result.stderr) == (3, "")  # srun's status: nothing was preempted
    words = (tmp_path / "srun.txt").read_text().splitlines()
    assert {f"--rdzv-id={attempt}", "--nnodes=2", "--rdzv-endpoint=one:29400"} <= set(words)
    assert words[-3:] == ["train.py", "experiment=coco_8x128", "name=coco"]
    assert not (tmp_path / "scontrol.txt").exists()


def test_the_slurm_file_queues_a_preempted_run_again(tmp_path: Path):
    result = submit(tmp_path, "name=coco", PREEMPTED="1")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


@pytest.mark.parametrize("override", ["seed=3", "hydra.run.dir=elsewhere"])
def test_the_slurm_file_needs_to_know_the_runs_folder(override: str, tmp_path: Path):
    result = submit(tmp_path, override)
    assert result.returncode == 2
    assert "give name=" in result.stderr
    assert not (tmp_path / "srun.txt").exists()


def torchrun_arguments(words: list[str]) -> list[str]:
    """Parse as torchrun does; return what the training script gets."""
    options = get_args_parser().parse_args(words)
    assert "SIGUSR1" in options.signals_to_handle  # else it would kill torchrun and leave the ranks behind
    assert options.shutdown_timeout == 50  # an evaluation may hold up the ranks' last save
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
