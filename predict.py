"""Find objects: python predict.py checkpoint=… images=PICTURE, FOLDER or GLOB out=FOLDER.

Leaves the pictures with boxes drawn, and detections.json. Keys and their values: conf/predict.yaml.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from ssd.compose import parse, register
from ssd.console import RunConsole
from ssd.distributed import choose_device
from ssd.errors import UserError
from ssd.prediction.config import PredictConfig, categories_of
from ssd.prediction.find import find_pictures
from ssd.prediction.output import Output, count_rows
from ssd.prediction.predictor import Predictor
from ssd.prediction.run import predict_all
from ssd.runtime import set_up
from ssd.weights import load_weights

register("predict_schema", PredictConfig)


@hydra.main(version_base="1.3", config_path="conf", config_name="predict")
def main(composed: DictConfig) -> None:
    """Compose, set up, predict, report."""
    try:
        config = parse(PredictConfig, composed)
        files = find_pictures(config.places(), Path(config.out))
        weights = load_weights(Path(config.checkpoint))
        categories = categories_of(weights, config.checkpoint)
        labels = config.resolve_classes(categories)
        runtime_config = config.runtime.as_trained(weights)
        runtime = set_up(runtime_config, choose_device(runtime_config.device, local_rank=0))
        predictor = Predictor(weights.network(), runtime, config.threshold, config.max_detections, labels)
        output = Output(Path(config.out), files, categories)
        with RunConsole(is_main=True) as console:
            console.say(f"{config.checkpoint}, scores above {config.threshold}, {runtime.describe()}")
            summary = predict_all(files, predictor, output, config.batch_size, config.threads, console)
            console.table(f"found → {output.folder}", count_rows(summary.results, categories))
            console.say(summary.describe())
        summary.check()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
