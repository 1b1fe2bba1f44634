"""The order of images: literal references, numbers that never change."""

from itertools import islice

import pytest

from data.sampling import epoch_order, raw_draws, uniform_draws

pytestmark = pytest.mark.unit


def test_order_of_a_seed_and_epoch_never_changes() -> None:
    # Written down once: a resumed run relies on the order of the version that began it.
    assert epoch_order(12, seed=0, epoch=0).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    draws = raw_draws(seed=3, epoch=2, stream=1, count=2).tolist()
    assert draws == [10542167541999375453, 12987218837778228269]


def test_uniform_draws_are_the_raw_ones_however_few_are_taken_at_once() -> None:
    stream = (3, 2, 1)
    drawn = list(islice(uniform_draws(*stream), 1000))
    assert drawn == [draw // 2**11 / 2**53 for draw in raw_draws(*stream, 1000).tolist()]
    assert 0 <= min(drawn) < 0.01 < 0.99 < max(drawn) < 1


def test_order_sorts_images_by_their_draws() -> None:
    draws = raw_draws(seed=9, epoch=4, stream=0, count=1000).tolist()
    assert epoch_order(1000, seed=9, epoch=4).tolist() == sorted(range(1000), key=draws.__getitem__)


def test_streams_of_seeds_epochs_and_images_differ() -> None:
    streams = [(0, 0, 0), (1, 0, 0), (2**64 - 1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2**40, 0), (2**40, 0, 0)]
    assert len({tuple(raw_draws(*stream, 4).tolist()) for stream in streams}) == len(streams)
