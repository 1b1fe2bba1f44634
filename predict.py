"""Detect objects: python predict.py checkpoint=… images=PICTURE, FOLDER or GLOB out=FOLDER.

Writes the pictures with boxes drawn, and detections.json. Keys and values: conf/predict.yaml.
"""

from pathlib import Path

from ssd.cli import check_folder, run
from ssd.config import PredictConfig
from ssd.console import RunConsole
from ssd.detector import Detector
from ssd.distributed import choose_device
from ssd.prediction import find_pictures, predict_pictures
from ssd.published import load_weights
from ssd.runtime import set_up


def main(config: PredictConfig) -> None:
    """Set up, predict, report."""
    files = find_pictures(config.sources(), Path(config.out))
    weights = load_weights(Path(config.checkpoint))
    runtime_config = config.runtime.filled_from(weights)
    runtime = set_up(runtime_config, choose_device(runtime_config.device, local_rank=0))
    detector = Detector.of(weights, runtime.precision.value)
    runtime.place(detector)
    check_folder(Path(config.out), "out")
    with RunConsole(is_main=True) as console:
        console.say(f"{config.checkpoint}, scores above {config.threshold}, {runtime.describe()}")
        predict_pictures(files, detector, config, console)


if __name__ == "__main__":
    run(main, PredictConfig, Path(__file__).with_name("conf"), "predict")
