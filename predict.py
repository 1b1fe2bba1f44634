"""Find objects: python predict.py checkpoint=… images=PICTURE, FOLDER or GLOB out=FOLDER.

Leaves the pictures with boxes drawn, and detections.json. Keys and their values: conf/predict.yaml.
"""

from pathlib import Path

from ssd.cli import check_folder, run
from ssd.config import PredictConfig
from ssd.console import RunConsole
from ssd.detector import Detector
from ssd.distributed import choose_device
from ssd.prediction import Output, find_pictures, predict_pictures
from ssd.published import load_weights
from ssd.runtime import set_up


def main(config: PredictConfig) -> None:
    """Set up, predict, report."""
    files = find_pictures(config.sources(), Path(config.out))
    weights = load_weights(Path(config.checkpoint))
    categories = weights.categories_or_coco(config.checkpoint)
    categories.labels_named(config.classes)  # an unknown name is told before the work
    runtime_config = config.runtime.filled_from(weights)
    runtime = set_up(runtime_config, choose_device(runtime_config.device, local_rank=0))
    detector = Detector.of(weights, runtime.precision.value)
    runtime.place(detector)
    output = Output(Path(config.out), categories)
    check_folder(output.folder, "out")
    with RunConsole(is_main=True) as console:
        console.say(f"{config.checkpoint}, scores above {config.threshold}, {runtime.describe()}")
        predict_pictures(files, detector, output, config, console)


if __name__ == "__main__":
    run(main, PredictConfig, Path(__file__).with_name("conf"), "predict")
