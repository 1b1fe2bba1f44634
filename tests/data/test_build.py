"""The config's data section becomes loaders and evaluator; what each rank finds counts for all."""

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.build import describe, open_evaluation, open_training, pick_examples
from data.demo import generate
from data.index import CocoIndex
from ssd.categories import Categories
from ssd.cli import as_plain
from ssd.config import Check, DataConfig, OnBadImage, TrainConfig
from ssd.errors import UserError
from ssd.evaluation.evaluator import Evaluator
from ssd.training.session import Session
from ssd.training.state import SavedRun
from ssd.training.trainer import Task
from tests.data.coco_folder import crashing_jpeg_2000
from tests.ssd.training.samples import saved_run

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task") / "demo"
    generate(folder, 9, 7)
    return folder


def config(folder: Path, **given: object) -> TrainConfig:
    return TrainConfig(name="x", data=DataConfig(path=str(folder), batch_size=2, **given))


def evaluation(data: DataConfig, trained: Categories | None, session: Session) -> tuple[Evaluator, CocoIndex]:
    return open_evaluation(data, trained, timedelta(1), session.runtime, session.ranks, session.console)


def test_training_and_evaluation_are_opened_from_one_folder(demo: Path, session: Session):
    task, _ = open_training(config(demo), None, session)
    assert next(task.loader.batches(0)).images.shape == (2, 3, 300, 300)
    assert task.evaluator.images == 7
    assert task.evaluator.image_ids is None
    assert sum(len(batch.image_ids) for batch in task.evaluator.loader) == 7


def test_a_limit_counts_for_training_and_evaluation_and_what_is_not_used_is_said(
    demo: Path, session: Session
):
    task, rows = open_training(config(demo, limit=3), None, session)
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    assert task.evaluator.image_ids == [image["id"] for image in content["images"][:3]]
    assert "6 images beyond data.limit" in rows["training images"]
    assert set(rows) == {"training images", "validation images"}
    _, index = evaluation(config(demo).data, None, session)
    counted = f"7 with {len(index.labels)} boxes of {len(index.categories.ids)} classes"
    assert describe(index).startswith(counted)


def test_validation_with_other_categories_is_refused(demo: Path, tmp_path: Path, session: Session):
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    content["categories"][0]["name"] = "something else"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="something else"):
        open_training(config(demo, val_annotations=str(tmp_path / "val.json")), None, session)


def test_a_published_checkpoint_takes_the_files_categories_and_one_of_ours_keeps_its_own(
    demo: Path, session: Session
):
    data = config(demo).data
    evaluator, index = evaluation(data, None, session)
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    assert evaluator.categories == index.categories
    assert list(evaluator.categories.ids) == [each["id"] for each in content["categories"]]
    trained = Categories(index.categories.ids[::-1], index.categories.names[::-1])
    evaluator, _ = evaluation(data, trained, session)
    assert evaluator.categories == trained


def test_examples_are_images_with_boxes_spread_over_the_file(demo: Path, session: Session):
    _, index = evaluation(config(demo).data, None, session)
    with_boxes = [image for image in range(len(index)) if len(index.boxes_of(image)[1])]
    ends = with_boxes[0], with_boxes[-1]
    assert pick_examples(index, 2) == {int(index.image_ids[image]): index.path(image) for image in ends}
    assert len(pick_examples(index, 99)) == len(with_boxes)
    assert pick_examples(index, 0) == {}


@pytest.fixture
def own_demo(tmp_path: Path) -> Path:
    """A set that a test may spoil."""
    generate(tmp_path / "own", 9, 3)
    return tmp_path / "own"


def train_images(folder: Path) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = json.loads(
        (folder / "annotations" / "instances_train2017.json").read_text()
    )["images"]
    return images


def saved_of(task: Task, config: TrainConfig) -> SavedRun:
    """Return a checkpoint of a run on one rank, before its first step."""
    return saved_run(
        step=0,
        config=as_plain(config),
        global_batch=2,
        fingerprint=task.fingerprint,
        categories=task.categories,
        excluded_images=task.excluded,
    )


def quarantined(folder: Path, **given: Any) -> TrainConfig:
    return config(folder, on_bad_image=OnBadImage.quarantine, **given)


def test_a_run_that_resumes_replaces_damaged_pictures_in_the_steps_in_which_one_that_goes_on_does(
    own_demo: Path, session: Session, capsys: pytest.CaptureFixture[str]
):
    """In those that can't read them: a picture cut short in some, one of another size in none."""
    given = quarantined(own_demo, check=Check.full)
    began, _ = open_training(given, None, session)
    short, other = (own_demo / "train2017" / each["file_name"] for each in train_images(own_demo)[:2])
    whole = short.read_bytes()
    short.write_bytes(whole[:-100])
    Image.new("RGB", (40, 30)).save(other)
    resumed, _ = open_training(given, saved_of(began, given), session)
    assert (resumed.excluded, resumed.fingerprint) == ([], began.fingerprint)
    said = capsys.readouterr().out
    for path in (short, other):
        assert f"bad image since the run began, replaced in each step that can't read it: {path}" in said
    steps = 3 * began.loader.steps_per_epoch
    both = zip(began.loader.batches(0), resumed.loader.batches(0), strict=True)
    for ours, theirs in itertools.islice(both, steps):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    seen = [each["file"] for step in range(steps) for each in resumed.loader.contents(step)]
    assert 0 < seen.count(str(short)) < 3 <= seen.count(str(other))
    assert [*resumed.loader.bad_images()] == [*began.loader.bad_images()] == [1]

    # A file that crashes the decoder ends the one run. The other opens it no more.
    short.write_bytes(whole)
    other.write_bytes(crashing_jpeg_2000())
    resumed, _ = open_training(given, saved_of(began, given), session)
    seen = [each["file"] for step in range(steps) for each in resumed.loader.contents(step)]
    assert str(short) in seen
    assert str(other) not in seen


def test_a_run_that_goes_on_with_other_annotations_leaves_out_their_bad_images(
    own_demo: Path, tmp_path: Path, session: Session
):
    first, second, *_ = train_images(own_demo)
    good, bad = (own_demo / "train2017" / image["file_name"] for image in (first, second))
    content = good.read_bytes()
    good.write_bytes(b"")
    began, _ = open_training(quarantined(own_demo), None, session)
    assert began.excluded == [first["id"]]
    good.write_bytes(content)
    bad.write_bytes(b"")
    resumed, _ = open_training(quarantined(own_demo), saved_of(began, quarantined(own_demo)), session)
    assert (resumed.excluded, resumed.fingerprint) == ([first["id"]], began.fingerprint)

    annotations = json.loads((own_demo / "annotations" / "instances_train2017.json").read_text())
    annotations["annotations"].pop()
    (tmp_path / "other.json").write_text(json.dumps(annotations))
    other = quarantined(own_demo, train_annotations=str(tmp_path / "other.json"))
    changed, _ = open_training(other, saved_of(began, other), session)
    assert changed.excluded == [second["id"]]
    again, _ = open_training(other, saved_of(changed, other), session)
    assert (again.excluded, again.fingerprint) == (changed.excluded, changed.fingerprint)
