"""predict.py as a user runs it, against a slow literal reference, and with bad input.

It also tests evaluate.py with a malicious checkpoint and with an output that can't be written.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import ssd
from ssd.boxes import default_boxes
from ssd.checkpoint import write
from ssd.cli import as_plain
from ssd.config import Backbone, ModelConfig, TrainConfig
from ssd.detect import detect
from ssd.image import normalize, read_picture, squash
from ssd.model import SSD300

pytestmark = pytest.mark.unit

Results = list[dict[str, Any]]
Capture = pytest.CaptureFixture[str]

NAMES = ("ant", "[bee]:car:", "\x1b[31mcow\x9b")
SHOWN_NAMES = ("ant", "[bee]:car:", "�[31mcow�")  # no terminal control characters
IDS = (30, 10, 20)
SIZES = {"a.png": (90, 60), "b/a.jpg": (40, 200), "b/c.webp": (300, 300), "d.png": (1, 1), "e.bmp": (400, 30)}
MOST = 60  # detections per picture
UPRIGHT_SIZES = SIZES | {"b/a.jpg": (200, 40)}


@pytest.fixture(scope="module")
def network() -> SSD300:
    """Make a network of random weights whose logits are so far apart that it finds all classes everywhere."""
    torch.manual_seed(0)
    network = SSD300("resnet18", len(NAMES) + 1)
    for head in network.logit_heads:
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.normal_(head.bias, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(network: SSD300, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "best.pt"
    config = as_plain(TrainConfig(name="x", model=ModelConfig(backbone=Backbone.resnet18)))
    config["runtime"]["precision"] = "fp32"
    categories = {"ids": list(IDS), "names": list(NAMES)}
    model = dict(network.state_dict())
    write(path, {"format": 1, "model": model, "categories": categories, "config": config})
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save noise pictures of several formats and sizes, one of them rotated by EXIF."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for name, (width, height) in SIZES.items():
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "b/a.jpg" else 1
        (folder / name).parent.mkdir(exist_ok=True)
        picture.save(folder / name, exif=exif)
    return folder


def run(script: Any, **overrides: object) -> int | str | None:
    """Run a script in this process; return its exit code or message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__file__, *(f"{key}={value}" for key, value in overrides.items())])
        try:
            runpy.run_path(script.__file__, run_name="__main__")
        except SystemExit as end:
            return end.code
    return 0


def predicted(checkpoint: Path, photos: Path, out: Path, **overrides: object) -> Results:
    where = {"checkpoint": checkpoint, "images": photos, "out": out}
    assert run(predict, **(where | {"threshold": 0.2, "max_detections": MOST} | overrides)) == 0
    return json.loads((out / "detections.json").read_text())


@pytest.fixture(scope="module")
def everything(network: SSD300, photos: Path) -> Results:
    """Go through the pictures and their detections one by one; return all detections."""
    results = []
    for image_id, name in enumerate(sorted(SIZES), start=1):
        picture = read_picture(photos / name)
        images = normalize(np.asarray(squash(picture))[None] / np.float32(255))
        with torch.no_grad():
            offsets, logits = network(images)
        (found,) = detect(offsets, logits, default_boxes(), score_threshold=0.2, max_detections=10**6)
        for (left, top, right, bottom), score, label in zip(*(each.tolist() for each in found), strict=True):
            width, height = picture.size
            bbox = [left * width, top * height, (right - left) * width, (bottom - top) * height]
            result = {"image_id": image_id, "file_name": name, "category_id": IDS[label - 1]}
            results.append(result | {"bbox": bbox, "score": score})
    return results


def assert_best_of(everything: Results, found: Results) -> None:
    """Compare up to rounding, which may change the order of detections with nearly equal scores."""
    assert [each["image_id"] for each in found] == sorted(each["image_id"] for each in found)
    assert all([*one] == ["image_id", "file_name", "category_id", "bbox", "score"] for one in found)
    for image_id, name in enumerate(sorted(SIZES), start=1):
        mine, all_of_it = (
            np.array([(e["category_id"], e["score"], *e["bbox"]) for e in some if e["file_name"] == name])
            for some in (found, everything)
        )
        assert {each["image_id"] for each in found if each["file_name"] == name} == {image_id}
        np.testing.assert_allclose(mine[:, 1], all_of_it[:MOST, 1], atol=1e-4)
        close = np.abs(mine[:, None] - all_of_it) <= (0, 1e-4, 0.05, 0.05, 0.05, 0.05)
        assert close.all(axis=2).any(axis=1).all()


def test_it_finds_what_a_look_at_each_picture_by_itself_finds_and_draws_it_upright(
    everything: Results, checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture
):
    found = predicted(checkpoint, photos, tmp_path)
    assert_best_of(everything, found)
    assert {each["file_name"] for each in found} == set(SIZES)
    drawn = {name: name if name.endswith((".png", ".jpg")) else f"{name}.jpg" for name in SIZES}
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {*drawn.values(), "detections.json"}
    for name, size in UPRIGHT_SIZES.items():
        with Image.open(tmp_path / drawn[name]) as picture:
            assert (picture.size, picture.mode, dict(picture.getexif())) == (size, "RGB", {})
    output = capsys.readouterr().out
    for name, category_id in zip(SHOWN_NAMES, IDS, strict=True):
        mine = [each["file_name"] for each in found if each["category_id"] == category_id]
        (line,) = [line for line in output.splitlines() if line.startswith(f"│ {name} ")]
        assert line.split()[3:6] == [str(len(mine)), "on", str(len(set(mine)))]
    assert f"{len(found)} detections on 5 pictures" in output


def test_in_python_the_run_finds_the_same_in_two_lines(checkpoint: Path, photos: Path, tmp_path: Path):
    options = {"threshold": 0.3, "max_detections": 9}
    run_folder = checkpoint.parent.parent
    results = predicted(run_folder, photos, tmp_path, classes="[ant]", **options)
    model = ssd.load(run_folder, device="cpu")
    found = model.predict([photos / name for name in sorted(SIZES)], classes="ant", **options)
    rows = []
    for image_id, each in enumerate(found, start=1):
        columns = (each.boxes_ltrb_px.tolist(), each.scores.tolist(), each.labels, each.names)
        for (left, top, right, bottom), score, label, name in zip(*columns, strict=True):
            assert name == NAMES[label - 1] == "ant"
            rows.append((image_id, IDS[label - 1], [left, top, right - left, bottom - top], score))
    keys = ("image_id", "category_id", "bbox", "score")
    assert rows == [tuple(result[key] for key in keys) for result in results]
    assert len(rows) > 10
    assert np.array_equal(found[0].draw(), Image.open(tmp_path / "a.png"))


def test_batches_and_threads_change_nothing_and_broken_pictures_are_named(
    everything: Results, checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture
):
    mixed = shutil.copytree(photos, tmp_path / "mixed")
    (mixed / "zz.jpg").write_bytes((mixed / "b" / "a.jpg").read_bytes()[:700])
    (mixed / "zz\x1b[2J\udcff.png").write_text("not a picture")
    given = {"checkpoint": checkpoint, "images": mixed, "out": tmp_path / "out", "threshold": 0.2}
    error = run(predict, **given, max_detections=MOST, batch_size=3, threads=8)
    assert isinstance(error, str)  # an exit status of 1
    assert error.startswith("error: 2 of 7 pictures could not be read:\n")
    output = capsys.readouterr().out
    for name in ("zz.jpg", "zz�[2J�.png"):
        assert f"{mixed / name} " in output
        assert f"{mixed / name} " in error
    assert not [*(tmp_path / "out").glob("zz*")]
    assert_best_of(everything, json.loads((tmp_path / "out" / "detections.json").read_text()))


class Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


@pytest.mark.parametrize("script", [predict, evaluate])
def test_a_malicious_checkpoint_is_refused_and_does_not_run(script: Any, tmp_path: Path, photos: Path):
    touched, path = tmp_path / "touched", tmp_path / "malicious.pt"
    torch.save({"format": 1, "model": Payload(touched)}, path)
    key, out = "images" if script is predict else "data.path", tmp_path / "out"
    error = str(run(script, **{"checkpoint": path, key: photos, "out": out}))
    assert error.startswith(f"error: checkpoint {path} can't be read")
    assert not touched.exists()
    assert not out.exists()


@pytest.mark.parametrize("out", ["{folder}", "", "{folder}/best.pt/report.json"])
def test_evaluate_says_before_its_work_that_the_report_cannot_be_written(out: str, checkpoint: Path):
    given = out.format(folder=checkpoint.parent)
    message = str(run(evaluate, **{"checkpoint": checkpoint, "data.path": "nowhere", "out": given}))
    assert message.startswith("error: ")
    assert "out=" in message
    assert "\n" not in message


def test_nothing_found_is_no_error(checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture):
    assert predicted(checkpoint, photos, tmp_path, threshold=0.999) == []
    output = capsys.readouterr().out
    assert "│" not in output
    assert f"0 detections on 5 pictures → {tmp_path}" in output


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("checkpoint=nowhere.pt", "error: checkpoint nowhere.pt does not exist"),
        ("images=nowhere", "error: images=nowhere: "),
        ("out={photos}", "error: out={photos}: images={photos} lie there; give another"),
        ("out={photos}/a.png", "error: {photos}/a.png can't be written (File exists); give another out=…"),
        ("runtime.precision=fp16", "error: runtime.precision=fp16 needs a GPU"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(
    override: str, error: str, checkpoint: Path, photos: Path, tmp_path: Path
):
    given = {"checkpoint": checkpoint, "images": photos, "out": tmp_path, "runtime.device": "cpu"}
    key, value = override.format(photos=photos).split("=", 1)
    message = str(run(predict, **(given | {key: value})))
    assert message.startswith(error.format(photos=photos))
    assert "\n" not in message
