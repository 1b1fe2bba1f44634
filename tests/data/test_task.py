import json
from datetime import timedelta
from pathlib import Path

import pytest

from data.coco import CocoIndex
from data.demo import generate
from data.task import describe, open_evaluation, open_training, pick_examples
from ssd.categories import Categories, CategoryError
from ssd.config import DataConfig, TrainConfig
from ssd.evaluation.evaluator import Evaluator
from ssd.training.session import Session

pytestmark = pytest.mark.unit


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
    task, rows = open_training(config(demo), None, session)
    assert next(task.loader.batches(0)).images.shape == (2, 3, 300, 300)
    assert task.evaluator.images == 7
    assert task.evaluator.image_ids is None
    assert sum(len(batch.image_ids) for batch in task.evaluator.loader) == 7
    assert set(rows) == {"training images", "validation images"}


def test_a_limit_counts_for_training_and_evaluation(demo: Path, session: Session):
    task, _ = open_training(config(demo, limit=3), None, session)
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    assert task.evaluator.image_ids == [image["id"] for image in content["images"][:3]]


def test_validation_with_other_categories_is_refused(demo: Path, tmp_path: Path, session: Session):
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    content["categories"][0]["name"] = "something else"
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(CategoryError, match="something else"):
        open_training(config(demo, val_annotations=str(tmp_path / "val.json")), None, session)


def test_a_published_checkpoint_takes_the_files_categories_in_their_order(demo: Path, session: Session):
    data = config(demo).data
    evaluator, index = open_evaluation(
        data, None, timedelta(1), session.runtime, session.ranks, session.console
    )
    content = json.loads((demo / "annotations" / "instances_val2017.json").read_text())
    assert evaluator.categories == index.categories
    assert list(evaluator.categories.ids) == [each["id"] for each in content["categories"]]


def test_a_checkpoints_categories_are_kept_in_their_own_order(demo: Path, session: Session):
    data = config(demo).data
    _, index = evaluation(data, None, session)
    trained = Categories(index.categories.ids[::-1], index.categories.names[::-1])
    evaluator, _ = open_evaluation(
        data, trained, timedelta(1), session.runtime, session.ranks, session.console
    )
    assert evaluator.categories == trained


def test_examples_are_images_with_boxes_spread_over_the_file(demo: Path, session: Session):
    _, index = open_evaluation(
        config(demo).data, None, timedelta(1), session.runtime, session.ranks, session.console
    )
    with_boxes = [image for image in range(len(index)) if len(index.boxes_of(image)[1])]
    examples = pick_examples(index, 2)
    assert [example.path for example in examples] == [index.path(with_boxes[0]), index.path(with_boxes[-1])]
    assert len(pick_examples(index, 99)) == len(with_boxes)
    assert pick_examples(index, 0) == []
    width, height = index.sizes_px[with_boxes[0]]
    assert examples[0].boxes_ltrb_px[:, 2].max() > 1
    assert (examples[0].boxes_ltrb_px <= [width, height, width, height]).all()


def test_what_is_not_used_is_said(demo: Path, session: Session):
    _, rows = open_training(config(demo, limit=3), None, session)
    assert "6 images beyond data.limit" in rows["training images"]
    index = open_evaluation(
        config(demo).data, None, timedelta(1), session.runtime, session.ranks, session.console
    )[1]
    assert describe(index).startswith(
        f"7 with {len(index.labels)} boxes of {len(index.categories.ids)} classes"
    )
