"""Categories that differ between the splits are told apart by how they differ."""

import pytest

from data.doctor.findings import Kind
from data.doctor.splits import compare_categories

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ({1: "cat", 2: "dog"}, {2: "dog", 1: "cat"}, []),
        ({1: "cat", 2: "dog"}, {1: "cat"}, [(Kind.category_missing, "id 2 in train, missing from val")]),
        ({1: "cat"}, {1: "cat", 2: "dog"}, [(Kind.category_missing, "id 2 in val, missing from train")]),
        ({1: "cat"}, {1: "Cat"}, [(Kind.category_renamed, "id 1 is 'cat' in train, 'Cat' in val")]),
        ({1: "cat"}, {0: "cat"}, [(Kind.category_renumbered, "id 1 in train, 0 in val")]),
        (
            {1: "cat", 2: "dog"},
            {1: "dog", 2: "cat"},
            [
                (Kind.category_renumbered, "id 1 in train, 2 in val"),
                (Kind.category_renumbered, "id 2 in train, 1 in val"),
            ],
        ),
        (
            {1: "cat", 2: "dog"},
            {2: "cat"},
            [
                (Kind.category_renumbered, "id 1 in train, 2 in val"),
                (Kind.category_missing, "id 2 in train, missing from val"),
            ],
        ),
        ({}, {}, []),
    ],
)
def test_each_difference_is_told_once(
    train: dict[object, str], val: dict[object, str], expected: list[tuple[Kind, str]]
) -> None:
    assert [(each.kind, each.detail) for each in compare_categories(train, val)] == expected
