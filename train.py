"""Train SSD300: python train.py experiment=… key=value, or torchrun --nproc_per_node=N train.py ….

The same command again resumes the run of that name. Exit status: 0 done, 1 error, 75 stopped by a signal
with everything saved. --multirun key=a,b starts one run per value. Keys and values: the files in conf/.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from data.build import open_training
from ssd.cli import run, varied
from ssd.config import TrainConfig
from ssd.training.log import last_evaluation
from ssd.training.session import open_session
from ssd.training.state import load_newest
from ssd.training.trainer import derived_numbers, start_or_resume


def main(config: TrainConfig) -> dict[str, float]:
    """Set up, train, tear down. Returns the last evaluation's metrics on rank 0, {} elsewhere."""
    for key in ("train_images", "train_annotations", "val_images", "val_annotations"):
        config.data.locate(key)  # report a missing key before a missing GPU
    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):  # shorter to read
        folder = folder.relative_to(Path.cwd())
    with open_session(config, folder) as session:
        saved = load_newest(session)
        task, summary = open_training(config, saved, session)
        trainer, origin = start_or_resume(config, saved, task, session)
        del saved  # frees a copy of weights and momentum buffers
        facts = summary | derived_numbers(trainer, origin)
        if not trainer.finished:
            session.console.table(f"{' '.join([config.name, *varied()])} → {folder}", facts)
        trainer.fit(facts)
        return last_evaluation(folder) if session.ranks.is_main else {}


if __name__ == "__main__":
    run(main, TrainConfig, Path(__file__).with_name("conf"), "train")
