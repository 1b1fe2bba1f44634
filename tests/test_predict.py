"""predict.py as a user runs it, against a slow literal reference, and what it does with bad input.

evaluate.py's answers to a malicious checkpoint and an unwritable place stand here too, beside predict.py's.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
from ssd.boxes import default_boxes
from ssd.checkpoint import write
from ssd.cli import as_plain
from ssd.config import Backbone, ModelConfig, TrainConfig
from ssd.detect import detect
from ssd.image import normalize, read_picture, squash
from ssd.model import SSD300
from ssd.published import to_published

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
NAMES = ("ant", "[bee]:car:", "cow")
IDS = (30, 10, 20)
SIZES = {"a.png": (90, 60), "b/a.jpg": (40, 200), "b/c.webp": (300, 300), "d.png": (1, 1), "e.bmp": (400, 30)}
MOST = 60  # detections a picture
UPRIGHT_SIZES = SIZES | {"b/a.jpg": (200, 40)}


@pytest.fixture(scope="module")
def network() -> SSD300:
    """Make a network of random weights with logits so far apart that it finds all classes everywhere."""
    torch.manual_seed(0)
    network = SSD300("resnet18", len(NAMES) + 1)
    for head in network.logit_heads:
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.normal_(head.bias, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(network: SSD300, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    config = as_plain(TrainConfig(name="x", model=ModelConfig(backbone=Backbone.resnet18)))
    config["runtime"]["precision"] = "fp32"
    categories = {"ids": list(IDS), "names": list(NAMES)}
    model = dict(network.state_dict())
    write(path, {"format": 1, "model": model, "categories": categories, "config": config})
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of noise in several kinds and sizes, one of them lying on its side."""
    random = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "b/a.jpg" else 1
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "photos" / name, exif=exif)
    return tmp_path / "photos"


def run(script: Any, *overrides: object) -> int | str | None:
    """Run a script's main in this process; return what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script.__file__, *map(str, overrides)])
        try:
            script.main()
        except SystemExit as end:
            return end.code
    return 0


def predicted(checkpoint: Path, photos: Path, *overrides: str) -> list[dict[str, Any]]:
    out = photos.parent / "out"
    where = (f"checkpoint={checkpoint}", f"images={photos}", f"out={out}")
    given = {"threshold": "0.2", "max_detections": str(MOST)} | dict(each.split("=", 1) for each in overrides)
    assert run(predict, *where, *(f"{key}={value}" for key, value in given.items())) == 0
    return json.loads((out / "detections.json").read_text())


def expected(network: SSD300, photos: Path, wanted: tuple[str, ...] = NAMES) -> list[dict[str, Any]]:
    """Look at one picture after the other and at one detection after the other; keep all of them."""
    results = []
    for image_id, name in enumerate(sorted(SIZES), start=1):
        picture = read_picture(photos / name)
        images = normalize(np.asarray(squash(picture))[None] / np.float32(255))
        with torch.no_grad():
            offsets, logits = network(images)
        (found,) = detect(offsets, logits, default_boxes(), score_threshold=0.2, max_detections=10**6)
        for (left, top, right, bottom), score, label in zip(*(each.tolist() for each in found), strict=True):
            if NAMES[label - 1] in wanted:
                width, height = picture.size
                bbox = [left * width, top * height, (right - left) * width, (bottom - top) * height]
                result = {"image_id": image_id, "file_name": name, "category_id": IDS[label - 1]}
                results.append(result | {"bbox": bbox, "score": score})
    return results


def assert_best_of(everything: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    """Compare but for rounding, which may change the order of detections whose scores are all but equal."""
    assert [each["image_id"] for each in found] == sorted(each["image_id"] for each in found)
    for image_id in range(1, len(SIZES) + 1):
        mine = [each for each in found if each["image_id"] == image_id]
        all_of_it = [each for each in everything if each["image_id"] == image_id]
        best = [each["score"] for each in all_of_it[:MOST]]
        assert len(all_of_it) > MOST
        assert [each["score"] for each in mine] == pytest.approx(best, abs=1e-4)
        for one in mine:
            assert list(one) == ["image_id", "file_name", "category_id", "bbox", "score"]
            assert any(alike(one, other) for other in all_of_it)


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    exact, rounded = ("file_name", "category_id"), (one["bbox"], one["score"])
    close = pytest.approx(other["bbox"], abs=0.05), pytest.approx(other["score"], abs=1e-4)
    return all(one[key] == other[key] for key in exact) and rounded == close


@pytest.mark.parametrize("how", [("batch_size=1", "threads=1"), ("batch_size=3", "threads=4"), ()])
def test_it_finds_what_a_look_at_each_picture_by_itself_finds(
    how: tuple[str, ...], network: SSD300, checkpoint: Path, photos: Path
):
    found = predicted(checkpoint, photos, *how)
    assert_best_of(expected(network, photos), found)
    assert {each["file_name"] for each in found} == set(SIZES)
    assert {each["category_id"] for each in found} == set(IDS)


def test_classes_are_chosen_before_the_best_are(network: SSD300, checkpoint: Path, photos: Path):
    found = predicted(checkpoint, photos, "classes=[ant,cow]")
    assert_best_of(expected(network, photos, wanted=("ant", "cow")), found)


def test_every_picture_is_drawn_upright_in_its_folder(checkpoint: Path, photos: Path):
    predicted(checkpoint, photos)
    drawn = {name: name if name.endswith((".png", ".jpg")) else f"{name}.jpg" for name in SIZES}
    out = photos.parent / "out"
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {*drawn.values(), "detections.json"}
    for name, size in UPRIGHT_SIZES.items():
        with Image.open(out / drawn[name]) as picture:
            assert (picture.size, picture.mode, dict(picture.getexif())) == (size, "RGB", {})


def test_the_classes_found_are_counted_in_a_table(
    checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
):
    found = predicted(checkpoint, photos)
    output = capsys.readouterr().out
    for name, category_id in zip(NAMES, IDS, strict=True):
        mine = [each["file_name"] for each in found if each["category_id"] == category_id]
        (line,) = [line for line in output.splitlines() if line.startswith(f"│ {name} ")]
        assert line.split()[3:6] == [str(len(mine)), "on", str(len(set(mine)))]
    assert f"{len(found)} detections on 5 pictures" in output


def test_broken_pictures_are_named_and_the_others_done(network: SSD300, checkpoint: Path, photos: Path):
    (photos / "zz.jpg").write_bytes((photos / "b" / "a.jpg").read_bytes()[:700])
    (photos / "zz.png").write_text("not a picture")
    out = photos.parent / "out"
    where = [f"checkpoint={checkpoint}", f"images={photos}", f"out={out}"]
    command = [sys.executable, str(ROOT / "predict.py"), *where, "threshold=0.2", f"max_detections={MOST}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=photos, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: 2 of 7 pictures could not be read:\n")
    for name in ("zz.jpg", "zz.png"):
        assert f"{photos / name} " in ended.stdout
        assert f"{photos / name} " in ended.stderr
        assert not (out / name).exists()
    assert_best_of(expected(network, photos), json.loads((out / "detections.json").read_text()))


def test_a_published_checkpoint_has_cocos_names_and_ids(tmp_path: Path, photos: Path):
    torch.manual_seed(0)
    network = SSD300("resnet18")
    for head in network.logit_heads:
        head.bias.data.view(81, -1)[80] += 20  # the last class of all
    torch.save(
        {"model": {f"module.{key}": value for key, value in to_published(network.state_dict()).items()}},
        tmp_path / "published.pt",
    )
    found = predicted(tmp_path / "published.pt", photos, "classes=[toothbrush]")
    assert {each["category_id"] for each in found} == {90}


class Payload:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


@pytest.mark.parametrize("script", [predict, evaluate])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_malicious_checkpoint_is_refused_and_does_not_run(
    script: Any, wrapped: bool, tmp_path: Path, photos: Path
):
    touched, path = tmp_path / "touched", tmp_path / "malicious.pt"
    content = {"format": 1, "model": Payload(touched)}
    if wrapped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    images = f"images={photos}" if script is predict else f"data.path={photos}"
    out = tmp_path / "out"
    error = str(run(script, f"checkpoint={path}", images, f"out={out}"))
    assert error.startswith(f"error: checkpoint {path} can't be read")
    assert not touched.exists()
    assert not out.exists()


@pytest.mark.parametrize("out", ["{folder}", "", "{folder}/best.pt/report.json"])
def test_evaluate_says_before_its_work_that_the_report_cannot_be_written(out: str, checkpoint: Path):
    given = out.format(folder=checkpoint.parent)
    message = str(run(evaluate, f"checkpoint={checkpoint}", "data.path=nowhere", f"out={given}"))
    assert message.startswith("error: ")
    assert "out=" in message
    assert "\n" not in message


def test_nothing_found_is_said_in_words(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]):
    assert predicted(checkpoint, photos, "threshold=0.999") == []
    output = capsys.readouterr().out
    assert "nothing has a score above threshold=0.999" in output
    assert "│" not in output
    assert "0 detections on 5 pictures" in output


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (("checkpoint=nowhere.pt",), "error: checkpoint nowhere.pt does not exist"),
        (("images=nowhere",), "error: images=nowhere: "),
        (("out={photos}",), "error: out={photos} is where images={photos} lie"),
        (
            ("out={photos}/a.png",),
            "error: {photos}/a.png can't be written (File exists); give another out=…",
        ),
        (("classes=[ants]",), "error: classes: the checkpoint knows no 'ants'; did you mean ant"),
        (("threshold=2",), "error: threshold=2.0: give a score from 0 to below 1"),
        (("runtime.precision=fp16", "runtime.device=cpu"), "error: runtime.precision=fp16 needs a GPU"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_to_do(
    overrides: tuple[str, ...], error: str, checkpoint: Path, photos: Path
):
    given = {"checkpoint": f"{checkpoint}", "images": f"{photos}", "out": f"{photos.parent / 'out'}"}
    given |= dict(each.format(photos=photos).split("=", 1) for each in overrides)
    message = str(run(predict, *(f"{key}={value}" for key, value in given.items())))
    assert message.startswith(error.format(photos=photos))
    assert "\n" not in message
