"""Make README's pictures of a run on the embedded set: python scripts/make_docs.py; make docs trains it too.

docs/detections.jpg and docs/training_batch.jpg are the run's own; docs/hub.jpg is drawn by README's code for
torch.hub, with the run's best.pt. Prints what the run came to, for their captions.
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

from ssd.errors import UserError
from ssd.image import grid

ROOT = Path(__file__).parent.parent
QUALITY = 72


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make README's pictures of a run on the embedded set.")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "docs", help="the run's folder")
    parser.add_argument("--data", type=Path, default=ROOT / "demo", help="the embedded set")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to put them")
    options = parser.parse_args(arguments)
    try:
        records = [
            json.loads(line) for line in _needed(options.run / "metrics.jsonl").read_text().splitlines()
        ]
        last = next(record for record in reversed(records) if "AP50" in record)
        evaluated = options.run / "pictures" / f"step_{last['step']:08d}"
        first = _needed(options.run / "pictures" / "step_00000000" / "first_training_batch.jpg")
        chosen = four_of_a_size(sorted(evaluated.glob("*.jpg")))
        originals = [options.data / "val2017" / file.name for file in chosen]
        pictures = {
            "detections": grid([Image.open(file) for file in chosen], columns=2),
            "training_batch": Image.open(first),
            "hub": hub_page(options.run / "checkpoints" / "best.pt", originals),
        }
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
        picture.save(options.out / f"{name}.jpg", quality=QUALITY, subsampling=0, optimize=True)
    print(f"{options.run}: {last['step']} steps, AP50 {last['AP50']:.3f}, AP {last['AP']:.3f}")


def four_of_a_size(files: list[Path]) -> list[Path]:
    """Choose the first four pictures of the size that most of them have."""
    sizes = {file: Image.open(file).size for file in files}
    (most, _) = Counter(sizes.values()).most_common(1)[0]
    return [file for file, size in sizes.items() if size == most][:4]


def hub_page(checkpoint: Path, files: list[Path]) -> Image.Image:
    """Run README's code for torch.hub on a checkpoint and some pictures, and join its figures."""
    code = (ROOT / "README.md").read_text(encoding="utf-8").split("## torch.hub")[1].split("```")[1]
    for issued, here in (
        ('"nvidia_ssd")', '"nvidia_ssd", source="local", weights=WEIGHTS)'),
        ('"nvidia_ssd_processing_utils")', '"nvidia_ssd_processing_utils", source="local")'),
        ('"cuda"', '"cpu"'),
        ("utils.get_coco_object_dictionary()", "ssd_model.category_names"),
        (
            "fig, ax = plt.subplots()",
            "fig, ax = plt.subplots(figsize=(4, 4), layout='tight')\n    ax.axis('off')",
        ),
        ("plt.show()", ""),
    ):
        if issued not in code:
            raise UserError(f"README's code for torch.hub has no {issued}; mend scripts/make_docs.py")
        code = code.replace(issued, here)
    known: dict[str, Any] = {"REPO": str(ROOT), "WEIGHTS": str(checkpoint), "uris": [*map(str, files)]}
    mpl.use("agg")
    exec(code.removeprefix("python"), known)
    return grid([_rendered(plt.figure(number)) for number in plt.get_fignums()])


def _rendered(figure: Any) -> Image.Image:
    file = BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")


def _needed(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file} does not exist; run `make docs`, or give --run=FOLDER")
    return file


if __name__ == "__main__":
    main()
