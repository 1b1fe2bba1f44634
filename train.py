"""Train SSD300: python train.py experiment=… key=value, or torchrun --nproc_per_node=N train.py ….

The same command again resumes the run of that name. Exit status: 0 done, 1 an error, 75 ended by a signal
with everything saved. Keys and their values: the files in conf/.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from data.task import open_training
from ssd.compose import parse, register
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.training.checkpoints import newest_checkpoint
from ssd.training.run import derived_numbers, start_or_resume
from ssd.training.session import open_session

register("train_schema", TrainConfig)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> None:
    """Compose, set up, fit, tear down."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        config = parse(TrainConfig, composed)
        with open_session(config, folder) as session:
            saved = newest_checkpoint(session)
            task, summary = open_training(config, saved, session)
            trainer, origin = start_or_resume(config, saved, task, session)
            del saved  # a copy of weights and momenta that nobody needs any more
            session.console.table(f"{config.name} → {folder}", summary | derived_numbers(trainer, origin))
            trainer.fit()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
