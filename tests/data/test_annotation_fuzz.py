"""Whatever an annotation file holds: a working index that equals a literal reading, or an error of ours.

And the examination finds an error just where reading does.
"""

import itertools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.index import CocoIndex, Selection, read_index
from ssd.annotations import FIXES, Defect, examine_annotations
from ssd.errors import UserError
from tests.data.annotation_mutations import VALID, damaged_texts, literal_boxes, mutated_texts

pytestmark = pytest.mark.unit

# The same examples in every run: the suite does not fail by chance.
FUZZ = settings(derandomize=True, database=None, deadline=None, max_examples=300)

Outcome = CocoIndex | str
Read = Callable[[bytes, Selection], tuple[Outcome, Outcome, list[Defect]]]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Return what reads a text as an annotation file, without and with the cache, and lists its errors."""
    folder = tmp_path_factory.mktemp("fuzz")
    file, times = folder / "annotations.json", itertools.count(10**18)

    def read_once(selection: Selection, cache: Path | None) -> Outcome:
        try:
            return read_index(file, folder, selection, cache)
        except UserError as error:
            return str(error)

    def read_text(text: bytes, selection: Selection) -> tuple[Outcome, Outcome, list[Defect]]:
        file.write_bytes(text)
        os.utime(file, ns=(0, next(times)))
        with warnings.catch_warnings(action="error"):
            _, defects = examine_annotations(file)
            errors = [defect for defect in defects if defect.kind in FIXES]
            return read_once(selection, None), read_once(selection, folder / "cache"), errors

    return read_text


def check(text: bytes, outcomes: tuple[Outcome, Outcome, list[Defect]]) -> None:
    plain, cached, errors = outcomes
    if isinstance(plain, str):
        assert plain == cached
        assert errors or "no image with a box is left" in plain
        assert plain.startswith(("data.train_annotations=", "data.val_annotations="))
        assert len(plain.encode()) < 6000 + 1000
        return
    assert not [error for error in errors if error.where != "annotations"]  # scoring needs the list of them
    assert isinstance(cached, CocoIndex)
    assert plain.fingerprint() == cached.fingerprint()
    assert plain.dropped == cached.dropped
    assert all("\0" not in plain.path(image) and plain.path(image).encode() for image in range(len(plain)))
    assert plain.box_starts.tolist() == sorted(plain.box_starts)
    assert (plain.box_starts[0], plain.box_starts[-1]) == (0, len(plain.labels))
    assert (plain.boxes_ltrb[:, :2] < plain.boxes_ltrb[:, 2:]).all()
    assert ((plain.boxes_ltrb >= 0) & (plain.boxes_ltrb <= 1)).all()
    expected = literal_boxes(text)
    image_ids = np.repeat(plain.image_ids, np.diff(plain.box_starts)).tolist()
    assert list(zip(image_ids, plain.labels.tolist(), strict=True)) == [each[:2] for each in expected]
    expected_ltrb = np.reshape([each[2] for each in expected], (-1, 4))
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(plain.boxes_ltrb, expected_ltrb, rtol=1e-6, atol=tiny)


TRAINING = Selection()
EVERY_IMAGE = Selection("val", images_without_boxes=True)


@FUZZ
@given(mutated_texts(), st.sampled_from([TRAINING, EVERY_IMAGE]))
@example(json.dumps(VALID).encode(), TRAINING)
@example(json.dumps(VALID).replace("b.png", r"b\u0000.png").encode(), TRAINING)
def test_mutated_document_is_read_as_it_stands_or_refused(
    read: Read, text: bytes, selection: Selection
) -> None:
    check(text, read(text, selection))


@FUZZ
@given(damaged_texts())
def test_damaged_text_is_read_as_it_stands_or_refused(read: Read, text: bytes) -> None:
    check(text, read(text, TRAINING))


@FUZZ
@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0eE-.ntf \\u', max_size=40).map(str.encode))
def test_bytes_that_are_no_annotation_file_are_refused(read: Read, text: bytes) -> None:
    plain, cached, errors = read(text, TRAINING)
    assert isinstance(plain, str)
    assert plain == cached
    assert errors
