"""Train SSD300: python train.py experiment=… key=value, or torchrun --nproc_per_node=N train.py ….

The same command again resumes the run of that name. Keys and their values: the files in conf/.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from data.task import open_training
from ssd.config import TrainConfig, parse, register
from ssd.console import RunConsole
from ssd.distributed import open_ranks
from ssd.errors import UserError
from ssd.runtime import set_up
from ssd.training.run import derived_numbers, start_or_resume

register("train_schema", TrainConfig)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Compose, set up, fit, tear down."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = parse(TrainConfig, composed)
        with open_ranks(config.runtime.device) as ranks, RunConsole(ranks.is_main) as console:
            runtime = set_up(config.runtime, ranks.device)
            task, summary = open_training(config, runtime, ranks)
            trainer = start_or_resume(config, task, runtime, ranks, console, folder)
            console.table(f"{config.name} → {folder}", summary | derived_numbers(trainer))
            trainer.fit(folder)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
