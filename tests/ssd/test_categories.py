import pytest

from ssd.categories import Categories
from ssd.errors import UserError

pytestmark = pytest.mark.unit

TRAINED = Categories(ids=(7, 3), names=("bird", "cup"))


def test_labels_count_from_one_in_the_order_of_the_file():
    assert (TRAINED.num_classes, TRAINED.id_of(1), TRAINED.name_of(2)) == (3, 7, "cup")


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
def test_other_categories_are_refused_by_file_but_not_another_order(truth: Categories):
    TRAINED.check_scored_by(Categories((3, 7), ("cup", "bird")), "val.json")
    with pytest.raises(UserError, match=r"val\.json: \d categories differ"):
        TRAINED.check_scored_by(truth, "val.json")


def test_a_detector_of_another_number_of_classes_is_refused():
    TRAINED.check_count(3, "val.json")
    with pytest.raises(UserError, match=r"3 classes apart and val\.json has 2"):
        TRAINED.check_count(4, "val.json")


def test_classes_are_chosen_by_name_and_an_unknown_one_is_answered_with_the_nearest():
    categories = Categories((3, 5, 7, 9), ("dog", "hot dog", "person", "dog"))  # names may repeat
    for names, labels in (None, {1, 2, 3, 4}), (["hot dog"], {2}), (["person", "dog"], {1, 3, 4}):
        assert categories.labels_named(names) == labels
    for name, near in ("Person", "person"), ("dgo", "dog"), ("zzz", "dog or hot dog or person"):
        with pytest.raises(UserError, match=rf"'{name}'; give {near}$"):
            categories.labels_named(["dog", name])
