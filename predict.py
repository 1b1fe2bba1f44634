"""Find objects: python predict.py checkpoint=… images=PICTURE, FOLDER or GLOB out=FOLDER.

Leaves the pictures with boxes drawn, and detections.json. Keys and their values: conf/predict.yaml.
"""

from pathlib import Path

from ssd.cli import run
from ssd.config import PredictConfig
from ssd.console import RunConsole
from ssd.distributed import choose_device
from ssd.prediction.find import find_pictures
from ssd.prediction.output import Output, count_rows
from ssd.prediction.predictor import Predictor
from ssd.prediction.run import predict_all
from ssd.published import load_weights
from ssd.runtime import set_up


def main(config: PredictConfig) -> None:
    """Set up, predict, report."""
    files = find_pictures(config.sources(), Path(config.out))
    weights = load_weights(Path(config.checkpoint))
    categories = weights.categories_or_coco(config.checkpoint)
    labels = config.resolve_classes(categories)
    runtime_config = config.runtime.filled_from(weights)
    runtime = set_up(runtime_config, choose_device(runtime_config.device, local_rank=0))
    predictor = Predictor(weights.network(), runtime, config.threshold, config.max_detections, labels)
    output = Output(Path(config.out), files, categories)
    with RunConsole(is_main=True) as console:
        console.say(f"{config.checkpoint}, scores above {config.threshold}, {runtime.describe()}")
        summary = predict_all(files, predictor, output, config.batch_size, config.threads, console)
        if summary.results:
            console.table(f"found → {output.folder}", count_rows(summary.results, categories))
        else:
            console.say(f"nothing has a score above threshold={config.threshold} → {output.folder}")
        console.say(summary.describe())
    summary.check()


if __name__ == "__main__":
    run(main, PredictConfig, Path(__file__).with_name("conf"), "predict")
