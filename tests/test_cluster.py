"""Cluster launch files: stubs stand in for Slurm's commands, torchrun's own parser reads its arguments."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parent.parent / "scripts" / "cluster"

# scontrol prints the host names and records its other calls; srun records its arguments.
STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "one\\ntwo\\n"; else echo "$*" >> scontrol.txt; fi',
    "srun": 'printf "%s\\n" "$@" > srun.txt\n[ -z "$PREEMPTED" ] || touch runs/coco/preempted\nexit 3',
}


def submit(folder: Path, *overrides: str, **variables: str) -> tuple[int, str]:
    """Run the Slurm file as Slurm would, with stubs and an earlier run's folder; return status and stderr."""
    for name, script in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "runs" / "coco").mkdir(parents=True)
    (folder / "runs" / "coco" / "preempted").touch()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[one-two]", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_CPUS_PER_TASK": "64", "PATH": f"{folder}:{os.environ['PATH']}", "PREEMPTED": ""}
    command = ["bash", str(FOLDER / "slurm.sbatch"), "experiment=coco_8x128", *overrides]
    done = subprocess.run(
        command, cwd=folder, env=slurm | variables, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def torchrun_arguments(words: list[str]) -> list[str]:
    """Parse as torchrun does; return the training script's arguments."""
    options = get_args_parser().parse_args(words)
    assert "SIGUSR1" in options.signals_to_handle  # else it would kill torchrun but not the ranks
    assert options.shutdown_timeout == 50  # an evaluation may delay the ranks' last save
    assert options.training_script == "train.py"
    arguments: list[str] = options.training_script_args
    return arguments


@pytest.mark.parametrize(("restarts", "attempt"), [({}, "7-0"), ({"SLURM_RESTART_COUNT": "2"}, "7-2")])
def test_the_slurm_file_starts_torchrun_when_submitted_and_when_queued_again(
    restarts: dict[str, str], attempt: str, tmp_path: Path
):
    assert submit(tmp_path, "name=coco", **restarts) == (3, "")  # srun's status, since nothing was preempted
    words = (tmp_path / "srun.txt").read_text().splitlines()
    assert {f"--rdzv-id={attempt}", "--nnodes=2", "--rdzv-endpoint=one:29400"} <= set(words)
    torchrun = words.index(".venv/bin/torchrun")
    assert torchrun_arguments(words[torchrun + 1 :]) == ["experiment=coco_8x128", "name=coco"]
    assert not (tmp_path / "scontrol.txt").exists()


def test_the_slurm_file_queues_a_preempted_run_again(tmp_path: Path):
    assert submit(tmp_path, "name=coco", PREEMPTED="1") == (0, "")
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


@pytest.mark.parametrize("override", ["seed=3", "hydra.run.dir=elsewhere"])
def test_the_slurm_file_needs_to_know_the_runs_folder(override: str, tmp_path: Path):
    status, told = submit(tmp_path, override)
    assert status == 2
    assert "give name=" in told
    assert not (tmp_path / "srun.txt").exists()


def test_torchrun_takes_the_kubernetes_files_arguments():
    service, job = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][0] == "torchrun"
    assert "experiment=coco_8x128" in torchrun_arguments(container["command"][1:])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
