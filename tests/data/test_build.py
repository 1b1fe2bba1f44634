"""The config's data section becomes loaders and evaluator; what each rank finds counts for all."""

import itertools
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.build import describe, open_evaluation, open_training, pick_examples, require_same_data
from data.demo import generate
from data.index import CocoIndex
from ssd.categories import Categories
from ssd.cli import as_plain
from ssd.config import Check, DataConfig, OnBadImage, TrainConfig
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.evaluation.evaluator import Evaluator
from ssd.training.session import Session
from ssd.training.state import SavedRun
from ssd.training.trainer import Task
from tests.data.coco_folder import crashing_jpeg_2000, index_of, three_pictures
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


def test_a_batch_larger_than_the_file_evaluates_all_of_it_at_once(demo: Path, session: Session):
    data = DataConfig(path=str(demo), batch_size=10**9)
    evaluator, _ = evaluation(data, None, session)
    assert [len(batch.image_ids) for batch in evaluator.loader] == [7]


def test_validation_with_other_categories_is_refused(demo: Path, tmp_path: Path, session: Session):
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    content["categories"][0]["name"] = "something else"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="something else"):
        open_training(config(demo, val_annotations=str(tmp_path / "val.json")), None, session)


@pytest.mark.parametrize("limit", [None, 2])
def test_validation_that_scoring_would_refuse_is_refused_at_the_start(
    demo: Path, tmp_path: Path, session: Session, limit: int | None
):
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    content["annotations"][-1]["area"] = "large"
    (tmp_path / "val.json").write_text(json.dumps(content))
    given = config(demo, val_annotations=str(tmp_path / "val.json"), limit=limit)
    with pytest.raises(UserError, match=r"val.json: annotations\[\d+\].area: Expected .*; correct"):
        open_training(given, None, session)


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
    annotations["categories"][0]["name"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(annotations))
    val = json.loads((own_demo / "annotations" / "instances_val2017.json").read_text())
    val["categories"] = annotations["categories"]
    (tmp_path / "val.json").write_text(json.dumps(val))
    other = quarantined(
        own_demo,
        train_annotations=str(tmp_path / "other.json"),
        val_annotations=str(tmp_path / "val.json"),
    )
    changed, _ = open_training(other, saved_of(began, other), session)
    assert changed.excluded == [second["id"]]
    again, _ = open_training(other, saved_of(changed, other), session)
    assert (again.excluded, again.fingerprint) == (changed.excluded, changed.fingerprint)


class SecondOfHost(Ranks):
    """Rank 1 of a host whose rank 0 has found what is given."""

    found: dict[int, str] | None = None

    def highest(self, value: int) -> int:
        return value

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, tuple):  # the annotations' fingerprint
            return [value, value]
        assert value == {}
        return [self.found, value]


def test_one_rank_of_a_host_looks_at_the_files_for_all(demo: Path, session: Session):
    ranks = SecondOfHost(session.ranks.device, rank=1, local_rank=1, world_size=2)
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    ranks.found = {content["images"][2]["id"]: "a bad file"}
    with pytest.raises(UserError, match=r"1 of 7 image files .* a bad file"):
        open_evaluation(config(demo).data, None, timedelta(1), session.runtime, ranks, session.console)


class Gathering(Ranks):
    """One rank of four, to which the gathered values are given."""

    values: list[Any]

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.values]


def ranks(*others: tuple[str, str]) -> Ranks:
    gathering = Gathering(torch.device("cpu"), world_size=4)
    gathering.values = [*others]
    return gathering


def test_the_key_and_each_hosts_ranks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = index_of(three_pictures(tmp_path))
    own = index.fingerprint()
    monkeypatch.setattr("socket.gethostname", lambda: "a")
    require_same_data(index, ranks((own, "a"), (own, "b"), (own, "b")))
    with pytest.raises(UserError) as caught:
        require_same_data(index, ranks((own, "a"), ("other fingerprint", "b"), (own, "c")))
    message = str(caught.value)
    assert message.startswith(f"data.train_annotations={index.source.annotation_file}: ")
    assert f"{own[:8]} on a (rank 0, 1), c (rank 3); other fi on b (rank 2). Give all hosts" in message
