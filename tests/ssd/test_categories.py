import pytest

from ssd.categories import COCO, Categories
from ssd.errors import UserError

pytestmark = pytest.mark.unit

TRAINED = Categories(ids=(7, 3), names=("bird", "cup"))


def test_labels_count_from_one_in_the_order_of_the_file():
    assert (TRAINED.num_classes, TRAINED.id_of(1), TRAINED.name_of(2)) == (3, 7, "cup")


def test_the_order_of_the_ground_truths_categories_does_not_matter():
    TRAINED.check_scored_by(Categories((3, 7), ("cup", "bird")), "val.json")


@pytest.mark.parametrize(
    "truth",
    [
        Categories((7, 3), ("bird", "mug")),
        Categories((7,), ("bird",)),
        Categories((7, 3, 4), ("bird", "cup", "dog")),
        Categories((3, 7), ("bird", "cup")),
    ],
    ids=["renamed", "missing", "one more", "swapped"],
)
def test_other_categories_are_refused_by_file(truth: Categories):
    with pytest.raises(UserError, match=r"val\.json: \d categories differ"):
        TRAINED.check_scored_by(truth, "val.json")


def test_a_detector_of_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"2 classes apart and val\.json has 1"):
        Categories((1,), ("a",)).check_count(3, "val.json")
    Categories((1,), ("a",)).check_count(2, "val.json")


@pytest.mark.parametrize(
    ("classes", "chosen"), [(None, {1, 2, 3, 4}), (["hot dog"], {2}), (["person", "dog"], {1, 3, 4})]
)
def test_classes_are_chosen_by_name(classes: list[str] | None, chosen: set[int]):
    categories = Categories((3, 5, 7, 9), ("dog", "hot dog", "person", "dog"))  # two may bear one name
    assert categories.labels_named(classes) == chosen


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("Person", r"'Person'; did you mean person.*\?"),
        ("dgo", r"'dgo'; did you mean dog.*\?"),
        ("zzz", "'zzz'; it knows person, bicycle"),
    ],
)
def test_an_unknown_class_is_answered_with_the_nearest_names(name: str, answer: str):
    with pytest.raises(UserError, match=answer):
        COCO.labels_named(["dog", name])
