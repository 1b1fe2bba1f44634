"""Score a checkpoint: python evaluate.py checkpoint=…, or the same under torchrun.

Without data.path=DIR it uses the training's validation data; relative paths start at the current folder.
Prints COCO's 12 metrics and writes them as json. Keys and values: conf/evaluate.yaml.
"""

from datetime import timedelta
from pathlib import Path

from data.build import describe, open_evaluation
from ssd.cli import check_file, run
from ssd.config import EvaluateConfig
from ssd.console import RunConsole
from ssd.distributed import open_ranks
from ssd.evaluation.coco import summary_lines
from ssd.evaluation.errors import explain
from ssd.evaluation.evaluator import as_results, evaluation_report, write_report
from ssd.published import load_weights
from ssd.runtime import set_up


def main(config: EvaluateConfig) -> None:
    """Set up, evaluate, report."""
    weights = load_weights(Path(config.checkpoint))
    data, runtime_config = config.resolve(weights)
    timeout = timedelta(minutes=config.timeout_minutes)
    with open_ranks(runtime_config.device, timeout) as ranks, RunConsole(ranks.is_main) as console:
        paths = {key: getattr(data, key) for key in ("path", "val_images", "val_annotations")}
        taken = [f"data.{key}={path}" for key, path in paths.items() if path != getattr(config.data, key)]
        if taken:
            console.say(f"{', '.join(taken)}, as {config.checkpoint} was trained")
        ranks.on_all(lambda: check_outputs(config) if ranks.is_main else None)
        runtime = set_up(runtime_config, ranks.device)
        evaluator, index = open_evaluation(data, weights.categories, timeout, runtime, ranks, console)
        evaluator.categories.check_count(weights.num_classes, evaluator.annotation_file)
        network = runtime.place(weights.network)
        console.say(f"{config.checkpoint} on {describe(index)}, {runtime.describe()}")
        result = evaluator.score([*evaluator.detect(network, runtime, ranks, console)], ranks)
        console.say(*summary_lines(result.numbers), *result.notes)
        if not result.scored:  # only rank 0 has these, and it writes the files
            return
        write_report(config.out, "out", evaluation_report(config.checkpoint, evaluator, result, runtime))
        if config.detections is not None:
            write_report(config.detections, "detections", as_results(result.detections), indent=None)
        if config.report is not None:
            from ssd import page  # here, because they import matplotlib, which takes a second
            from ssd import report as html

            analysis = explain(result.scored)
            about = config.checkpoint, f"{describe(index)}; {runtime.describe()}"
            sections = {"Numbers": [page.tiles(result.numbers)]} | html.failures(analysis, index.paths())
            reached = "AP {AP:.3f} and AP50 {AP50:.3f}.".format(**result.numbers)
            page.write(config.report, "report", about, [reached, *html.headline(None, analysis)], sections)


def check_outputs(config: EvaluateConfig) -> None:
    """Raise UserError if an output file can't be written."""
    for key in ("out", "detections", "report"):
        check_file(getattr(config, key), key)


if __name__ == "__main__":
    run(main, EvaluateConfig, Path(__file__).with_name("conf"), "evaluate")
