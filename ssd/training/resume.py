"""Everything a run needs to go on as if it had never stopped: captured, compared, put back (RECIPE 9)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from ssd.checkpoint import CheckpointError
from ssd.config import TrainConfig, require
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.training.meter import LossMeter
from ssd.training.optimizer import begin_momenta
from ssd.training.saved_run import SavedRun

# Everything else may differ: where the data lie, device, logging, evaluation, checkpoints, how long to train.
SHAPING = {
    "seed": None,
    "data": ("batch_size", "augment", "limit", "crowd", "min_box_px"),
    "model": None,
    "optimizer": None,
    "schedule": ("milestones", "warmup_steps"),
    "runtime": ("precision", "tf32", "channels_last", "compile", "deterministic"),
}


def shaping_values(config: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """Return the values that make two runs the same trajectory, by their override key.

    config: as plain values. fingerprint: of the cleaned training annotations. How many ranks there are is not
    among them: each takes its share of the global batch (`images_per_rank`).
    """
    values: dict[str, Any] = {"data.train_annotations": f"those of fingerprint {fingerprint}"}
    for section, keys in SHAPING.items():
        if not isinstance(config[section], dict):
            values[section] = config[section]
            continue
        for key in keys or config[section]:
            values[f"{section}.{key}"] = config[section].get(key)  # an older checkpoint may not have it
    return values


def check_same_run(saved: dict[str, Any], current: dict[str, Any], override: list[str], name: str) -> None:
    """Raise CheckpointError naming each key that differs, both values, and the mend.

    override: keys that may differ. Raises UserError where one of them is none that had to stay otherwise.
    """
    for key in override:
        require(key in current, "resume.override", override, f"{key} is none of {', '.join(current)}")
    differing = [key for key in current if saved.get(key) != current[key] and key not in override]
    if differing:
        lines = "\n".join(
            f"  {key}: {saved.get(key)} in the checkpoint, {current[key]} now" for key in differing
        )
        raise CheckpointError(
            f"the run {name!r} can't go on with other values of what shapes it:\n{lines}\n"
            "give the old values, or name=… to start another run, or, to go on as another run than it was,\n"
            f"'resume.override=[{','.join(differing)}]'"
        )


def images_per_rank(config: TrainConfig, saved: SavedRun | None, ranks: Ranks) -> int:
    """Return how many images of a step each rank takes: data.batch_size when a run begins.

    A resumed run keeps its global batch, however many ranks share it now, unless resume.override names
    data.batch_size. Raises UserError where they can't share it equally, with at least 2 images each.
    """
    if saved is None or "data.batch_size" in config.resume.override:
        return config.data.batch_size
    global_batch = saved.global_batch
    working = [n for n in range(1, global_batch // 2 + 1) if global_batch % n == 0]
    if ranks.world_size not in working:
        raise UserError(
            f"{ranks.world_size} ranks can't share out the run's global batch of {global_batch}: each takes "
            f"equally many images, at least 2. Numbers of ranks that work: {', '.join(map(str, working))}"
        )
    return global_batch // ranks.world_size


@dataclass(frozen=True)
class TrainState:
    """The parts of a run that change as it trains, but for its step, from which epoch and position follow."""

    network: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    meter: LossMeter
    ranks: Ranks

    def capture(self) -> dict[str, Any]:
        """Return the state as plain values; every rank takes part, waits for its device, and gets all of it.

        BatchNorm statistics differ between ranks while training; all take rank 0's, as DDP does at the next
        forward pass anyhow, so that capturing changes nothing.
        """
        self.ranks.take_main(list(self.network.buffers()))
        on_gpu = self.ranks.device.type == "cuda"
        per_rank = {
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.ranks.device) if on_gpu else None,
            "loss_sums": self.meter.read(),
        }
        return {
            "model": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ranks": self.ranks.gather(per_rank),
        }

    def restore_learned(self, state: dict[str, Any]) -> None:
        """Put weights, momenta and loss scale back; weight decay and momentum are the config's."""
        self.network.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        begin_momenta(self.optimizer)  # saved under optimizer.momentum=0 there were none
        if state["scaler"]:  # empty where it was saved without fp16
            self.scaler.load_state_dict(state["scaler"])

    def restore(self, state: dict[str, Any]) -> None:
        """Put captured values back on every rank, of which there may be another number now."""
        self.restore_learned(state)
        captured = state["ranks"]
        if len(captured) == self.ranks.world_size:
            own = captured[self.ranks.rank]
        else:
            own = captured[0] | {"loss_sums": _mean([each["loss_sums"] for each in captured])}
        torch.set_rng_state(own["rng_cpu"])
        if self.ranks.device.type == "cuda" and own["rng_cuda"] is not None:
            torch.cuda.set_rng_state(own["rng_cuda"], self.ranks.device)
        self.meter.restore(own["loss_sums"])


def _mean(sums: list[list[float]]) -> list[float]:
    """Average each place over the ranks."""
    return [sum(values) / len(sums) for values in zip(*sums, strict=True)]
