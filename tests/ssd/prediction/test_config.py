from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ssd.categories import COCO, Categories
from ssd.cli import parse, register
from ssd.config import Precision, PredictConfig
from ssd.errors import UserError
from ssd.published import Weights

pytestmark = pytest.mark.unit

CONF = Path(__file__).parents[3] / "conf"
TRAINED = Weights(
    model={},
    backbone="resnet34",
    num_classes=5,
    categories=Categories((3, 5, 7, 9), ("dog", "hot dog", "person", "dog")),
    config={"runtime": {"precision": "bf16", "tf32": False, "channels_last": False}},
)


def published(num_classes: int) -> Weights:
    return Weights(model={}, backbone="resnet50", num_classes=num_classes, categories=None, config=None)


@pytest.fixture(autouse=True, scope="module")
def _conf():
    register("predict_schema", PredictConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def predict_config(*overrides: str) -> PredictConfig:
    return parse(PredictConfig, compose("predict", overrides=["checkpoint=x.pt", *overrides]))


def test_the_file_says_what_the_schema_does():
    assert predict_config("images=a") == PredictConfig(checkpoint="x.pt", images="a")


@pytest.mark.parametrize(
    ("override", "places"),
    [
        ("images=photos", ["photos"]),
        ("images=photos/**/*.jp?g", ["photos/**/*.jp?g"]),
        ("images=[a.jpg,'b c','d/[1]*']", ["a.jpg", "b c", "d/[1]*"]),
        ("images=2017", ["2017"]),
        ('images="photos (1)/x=1,y"', ["photos (1)/x=1,y"]),
    ],
)
def test_images_is_one_place_or_several(override: str, places: list[str]):
    assert predict_config(override).sources() == places


@pytest.mark.parametrize("value", ["null", "true", "1e3", "[]", "''", "[a,null]", "{a: b}"])
def test_images_that_are_no_text_are_refused(value: str):
    with pytest.raises(UserError, match=r"^images="):
        predict_config(f"images={value}")


def test_images_must_be_given():
    with pytest.raises(UserError, match=r"images is not set: give images="):
        predict_config()


@pytest.mark.parametrize(
    "override",
    [
        "threshold=2",
        "threshold=1",
        "threshold=-0.1",
        "threshold=nan",
        "max_detections=0",
        "classes=[]",
        "batch_size=0",
        "threads=0",
        "out=''",
    ],
)
def test_a_senseless_value_is_refused_by_its_key(override: str):
    with pytest.raises(UserError, match=rf"^{override.split('=')[0]}="):
        predict_config("images=a", override)


def test_a_checkpoint_of_ours_runs_as_trained_where_nothing_is_given():
    runtime = predict_config("images=a").runtime.filled_from(TRAINED)
    assert (runtime.precision, runtime.channels_last) == (Precision.bf16, False)
    runtime = predict_config("images=a", "runtime.precision=fp32").runtime.filled_from(TRAINED)
    assert runtime.precision is Precision.fp32


def test_a_published_checkpoint_runs_in_float32():
    assert predict_config("images=a").runtime.filled_from(published(81)).precision is Precision.fp32


def test_classes_are_chosen_by_name_and_all_where_none_is():
    categories = TRAINED.categories_or_coco("x.pt")
    assert predict_config("images=a").resolve_classes(categories) == {1, 2, 3, 4}
    assert predict_config("images=a", "classes=[hot dog]").resolve_classes(categories) == {2}
    # Two categories may bear one name.
    assert predict_config("images=a", "classes=[person,dog]").resolve_classes(categories) == {1, 3, 4}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Person", "'Person'; did you mean person"),
        ("dgo", "'dgo'; did you mean dog"),
        ("zzz", "'zzz'; it knows person, bicycle"),
    ],
)
def test_an_unknown_class_is_answered_with_the_nearest_names(name: str, answer: str):
    with pytest.raises(UserError, match=answer):
        predict_config("images=a", f"classes=[dog,{name}]").resolve_classes(COCO)


def test_a_published_checkpoint_of_81_classes_has_cocos_names_and_ids():
    assert published(81).categories_or_coco("p.pt") is COCO


def test_a_published_checkpoint_of_other_classes_has_no_names_and_is_refused():
    with pytest.raises(UserError, match=r"^p\.pt holds no class names and 6 classes.*written by train\.py"):
        published(7).categories_or_coco("p.pt")
