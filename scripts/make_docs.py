"""Make the docs' pictures of a run on the embedded set: python scripts/make_docs.py; make docs trains it too.

docs/detections.jpg and docs/training_batch.jpg are the run's own; docs/hub.jpg is drawn by the code of
docs/HUB.md, with the run's best.pt. Prints what the run came to, for their captions.
"""

import argparse
import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from PIL import Image

from ssd.image import grid

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the docs' pictures of a run on the embedded set.")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "docs", help="the run's folder")
    parser.add_argument("--data", type=Path, default=ROOT / "demo", help="the embedded set")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to put them")
    given = parser.parse_args(arguments)
    metrics = given.run / "metrics.jsonl"
    if not metrics.is_file():
        parser.error(f"{metrics} does not exist; run `make docs`, or give --run=FOLDER")
    evaluations = [record for line in metrics.open() if "AP50" in (record := json.loads(line))]
    last = evaluations[-1]
    drawn = first_four_of_a_size(sorted((given.run / "pictures" / f"step_{last['step']:08d}").glob("*.jpg")))
    originals = [given.data / "val2017" / file.name for file in drawn]
    pictures = {
        "detections": grid([Image.open(file) for file in drawn], columns=2),
        "training_batch": Image.open(given.run / "pictures" / "step_00000000" / "first_training_batch.jpg"),
        "hub": hub_page(given.run / "checkpoints" / "best.pt", originals),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
        picture.save(given.out / f"{name}.jpg", quality=72, subsampling=0, optimize=True)
    print(f"{given.run}: {last['step']} steps, AP50 {last['AP50']:.3f}, AP {last['AP']:.3f}")


def first_four_of_a_size(files: list[Path]) -> list[Path]:
    """Choose the first four pictures of the size that most of them have."""
    sizes = {file: Image.open(file).size for file in files}
    (most, _) = Counter(sizes.values()).most_common(1)[0]
    return [file for file, size in sizes.items() if size == most][:4]


def hub_page(checkpoint: Path, files: list[Path]) -> Image.Image:
    """Run the code of docs/HUB.md on a checkpoint and some pictures, and join its figures."""
    code = (ROOT / "docs" / "HUB.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for there, here in (
        ('"nvidia_ssd")', '"nvidia_ssd", source="local", weights=WEIGHTS)'),
        ('"nvidia_ssd_processing_utils")', '"nvidia_ssd_processing_utils", source="local")'),
        ('"cuda"', '"cpu"'),
        ("utils.get_coco_object_dictionary()", "ssd_model.category_names"),
        ("plt.subplots()", "plt.subplots(figsize=(4, 4), layout='tight')\n    ax.axis('off')"),
        ("plt.show()", ""),
    ):
        if there not in code:
            raise SystemExit(f"error: the code of docs/HUB.md has no {there}; adapt scripts/make_docs.py")
        code = code.replace(there, here)
    mpl.use("agg")
    names: dict[str, Any] = {"REPO": str(ROOT), "WEIGHTS": str(checkpoint), "uris": [*map(str, files)]}
    exec(code, names)
    return grid([rendered(plt.figure(number)) for number in plt.get_fignums()])


def rendered(figure: Any) -> Image.Image:
    """Return a figure as a picture, and close it."""
    file = BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
