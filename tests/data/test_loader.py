"""Batches follow from (seed, step) alone, whatever ranks, threads and first step; bad images are named."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import data.loader
from data.graph import GraphOptions
from data.index import CocoIndex, read_index
from data.loader import DaliEvaluationLoader, DaliTrainLoader
from data.sampling import BatchPlan
from ssd.batches import EvaluationBatch, TrainBatch
from ssd.config import default_threads
from ssd.errors import UserError
from tests.data.coco_folder import CocoFolder, noise, noise_folder

pytestmark = pytest.mark.unit

IMAGES = 14  # two global batches of 6 an epoch, two images left over


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CocoIndex:
    folder = noise_folder(tmp_path_factory.mktemp("noise"), IMAGES)
    return read_index(folder.annotation_file, folder.image_folder)


def options(batch_size: int, threads: int = 1, dtype: torch.dtype = torch.float32) -> GraphOptions:
    return GraphOptions(batch_size, dtype, threads, device_id=None)


def loader(
    index: CocoIndex,
    batch_size: int = 6,
    seed: int = 3,
    world_size: int = 1,
    threads: int = 1,
    augment: bool = True,
    **given: Any,
) -> DaliTrainLoader:
    plan = BatchPlan(index, batch_size * world_size, seed, augment)
    return DaliTrainLoader(plan, options(batch_size, threads), **given)


def all_ranks(index: CocoIndex, world_size: int, **given: Any) -> list[DaliTrainLoader]:
    """The loaders of all ranks that share a global batch of 6."""
    size = 6 // world_size
    return [loader(index, size, world_size=world_size, rank=rank, **given) for rank in range(world_size)]


def ids(loader: DaliTrainLoader, step: int) -> list[int]:
    return [content["image_id"] for content in loader.contents(step)]


def take(loader: DaliTrainLoader, first_step: int, steps: int) -> list[TrainBatch]:
    return list(itertools.islice(loader.batches(first_step), steps))


def tensors(batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.images, batch.target_offsets, batch.labels


def equal(batch: TrainBatch, other: TrainBatch) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(tensors(batch), tensors(other), strict=True))


def rows(batch: TrainBatch, positions: list[int]) -> TrainBatch:
    return TrainBatch(*(part[positions] for part in tensors(batch)))


def together(shares: tuple[TrainBatch, ...]) -> TrainBatch:
    return TrainBatch(*(torch.cat(parts) for parts in zip(*map(tensors, shares), strict=True)))


@pytest.fixture(scope="module")
def expected(index: CocoIndex) -> list[TrainBatch]:
    """Steps 0 … 4 of one rank with one thread, which cross two ends of epochs."""
    return take(loader(index), 0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_is_as_promised(index: CocoIndex, dtype: torch.dtype) -> None:
    (batch,) = take(DaliTrainLoader(BatchPlan(index, 4, seed=0), options(4, dtype=dtype)), 0, 1)
    assert batch.images.shape == (4, 3, 300, 300)
    assert batch.images.dtype == dtype
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.target_offsets.shape, batch.target_offsets.dtype) == ((4, 8732, 4), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((4, 8732), torch.int64)
    assert (batch.labels > 0).any(dim=1).all()
    assert (batch.target_offsets[batch.labels == 0] == 0).all()


@pytest.mark.parametrize(("first_step", "threads"), [(1, 2), (2, 1), (4, 2)])
def test_batches_from_any_step_equal_those_of_an_uninterrupted_run(
    index: CocoIndex, expected: list[TrainBatch], first_step: int, threads: int
) -> None:
    resumed = take(loader(index, threads=threads), first_step, 5 - first_step)
    assert all(map(equal, resumed, expected[first_step:]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_rank_to_the_bit(
    index: CocoIndex, expected: list[TrainBatch], world_size: int
) -> None:
    loaders = all_ranks(index, world_size)
    for alone, *shares in zip(expected, *(take(each, 0, 5) for each in loaders), strict=True):
        assert equal(together(tuple(shares)), alone)
    assert all(ids(each, 3) == ids(loaders[0], 3) for each in loaders)


def test_each_seed_and_epoch_shows_each_image_differently(index: CocoIndex) -> None:
    def shown(seed: int, epoch: int) -> dict[int, Tensor]:
        whole = loader(index, IMAGES, seed)
        (batch,) = take(whole, epoch, 1)
        return dict(zip(ids(whole, epoch), batch.images, strict=True))

    first, next_epoch, other_seed = shown(0, 0), shown(0, 1), shown(1, 0)
    assert sorted(first) == sorted(next_epoch) == sorted(other_seed) == index.image_ids.tolist()
    for image_id, image in first.items():
        assert not torch.equal(image, next_epoch[image_id])
        assert not torch.equal(image, other_seed[image_id])


@pytest.fixture
def numbered(tmp_path: Path) -> CocoIndex:
    """Picture with id k is all of the grey level 10·k, so that pixels tell which one it is."""
    folder = CocoFolder(tmp_path)
    for number in range(1, IMAGES + 1):
        grey = np.full((40, 50, 3), 10 * number, np.uint8)
        folder.add(number, grey, [(5, 5, 30, 30)])
    folder.write()
    return read_index(folder.annotation_file, folder.image_folder)


def ids_in(images: Tensor) -> list[int]:
    """Read the ids off the pictures of `numbered`."""
    levels = (images[:, 0, 150, 150].double() * 0.229 + 0.485) * 255
    return (levels / 10).round().int().tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_shows_each_image_once_over_all_ranks(numbered: CocoIndex, world_size: int) -> None:
    loaders = all_ranks(numbered, world_size, augment=False)
    assert loaders[0].steps_per_epoch == 2
    shown = [[ids_in(batch.images) for batch in take(each, 0, 4)] for each in loaders]
    steps = [[image for ids in step for image in ids] for step in zip(*shown, strict=True)]
    assert steps == [ids(loaders[0], step) for step in range(4)]
    for epoch in (steps[0] + steps[1], steps[2] + steps[3]):
        assert len(epoch) == len(set(epoch)) == 12
    assert steps[0] + steps[1] != steps[2] + steps[3]


def test_batch_stays_as_it_is_while_others_are_made(index: CocoIndex) -> None:
    # The tensors lie in DALI's memory: it must not come back into use before they are gone.
    batches = loader(index, 2).batches(0)
    kept, copies = [], []
    for batch in itertools.islice(batches, 12):
        kept.append(batch)
        copies.append(TrainBatch(*(each.clone() for each in tensors(batch))))
    batches.close()
    assert all(map(equal, kept, copies))
    assert len({batch.images.data_ptr() for batch in kept}) == 12


@pytest.mark.parametrize(("world_size", "batch_size"), [(3, 4), (2, 14), (3, 1)])
def test_an_evaluation_shows_each_image_once_over_all_ranks(
    numbered: CocoIndex, world_size: int, batch_size: int
) -> None:
    batches: list[EvaluationBatch] = []
    for rank in range(world_size):
        own = DaliEvaluationLoader(numbered, options(batch_size), rank, world_size)
        first, again = [*own], [*own]
        assert len(first) == len(again) == len(own)
        assert all(map(torch.equal, [each.images for each in first], [each.images for each in again]))
        batches += first
    for batch in batches:
        assert ids_in(batch.images) == batch.image_ids
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.sizes_px.dtype == torch.float32
        assert batch.sizes_px.tolist() == [[50.0, 40.0]] * len(batch.image_ids)
    assert sorted(image for batch in batches for image in batch.image_ids) == list(range(1, IMAGES + 1))


def test_evaluation_batches_are_the_same_to_the_bit_for_any_world_size(index: CocoIndex) -> None:
    alone = list(DaliEvaluationLoader(index, options(4)))
    dealt = [list(DaliEvaluationLoader(index, options(4, threads=2), rank, 3)) for rank in range(3)]
    for number, batch in enumerate(alone):
        other = dealt[number % 3][number // 3]
        assert other.image_ids == batch.image_ids
        assert torch.equal(other.images, batch.images)
        assert torch.equal(other.sizes_px, batch.sizes_px)


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (0, "data.batch_size=0: .*BatchNorm.* at least 2"),
        (1, "data.batch_size=1: .*BatchNorm.* at least 2"),
        (8, r"14 images .* 2 ranks times data.batch_size=8: give a smaller"),
    ],
)
def test_batch_size_that_cannot_train_is_refused(index: CocoIndex, batch_size: int, message: str) -> None:
    loader(index, 7, world_size=2)
    with pytest.raises(UserError, match=message):
        loader(index, batch_size, world_size=2)


SPOIL: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "no picture": lambda path: path.write_bytes(b"not a picture at all"),
    "GIF": lambda path: path.write_bytes(b"GIF89a" + bytes(100)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
}


@pytest.mark.parametrize("spoil", SPOIL.values(), ids=SPOIL)
def test_bad_image_is_named_with_its_step_or_replaced_by_the_image_before(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    folder = noise_folder(tmp_path, 8)
    index = read_index(folder.annotation_file, folder.image_folder)
    failing, replacing = loader(index, 4), loader(index, 4, known_bad={})
    whole = take(failing, 0, 3)
    shown = ids(replacing, 1)
    path = folder.image_folder / f"{shown[2]}.png"
    spoil(path)

    batches = failing.batches(0)
    next(batches)
    with pytest.raises(UserError, match="Replace the file, or remove its entry") as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith(f"step 1: DALI cannot read {path} (image id {shown[2]}): ")
    assert message.count("image id") == 1
    assert message.endswith(" from the annotation file, or train with data.on_bad_image=quarantine")
    assert next(batches, None) is None
    with pytest.raises(UserError, match=rf"evaluation: .*{path.name} \(image id {shown[2]}\): \w") as caught:
        list(DaliEvaluationLoader(index, options(3)))
    assert str(caught.value).endswith("remove its entry and its boxes from the annotation file")

    first, second, third = take(replacing, 0, 3)
    assert equal(first, whole[0])
    assert equal(second, rows(whole[1], [0, 1, 1, 3]))
    assert next(iter(replacing.bad_images())) == shown[2]
    assert str(path) in replacing.bad_images()[shown[2]]
    assert ids(replacing, 1) == [shown[position] for position in (0, 1, 1, 3)]
    # Another process, begun at another step, comes to the same batches.
    for later, batch in enumerate(take(loader(index, 4, known_bad={}), 1, 2)):
        assert equal(batch, (second, third)[later])


@pytest.mark.parametrize("known", [False, True], ids=["met", "never opened"])
def test_replacements_are_the_same_for_any_number_of_ranks(numbered: CocoIndex, known: bool) -> None:
    """Of six images bad are the first, the last of the first of two ranks, and the first of the second."""
    shown = ids(loader(numbered), 1)
    bad = {shown[image]: "it crashes" for image in (0, 2, 3)}
    if not known:  # else DALI would read them
        for image_id in bad:
            (numbered.source.image_folder / f"{image_id}.png").write_bytes(b"")
    expected = [shown[image] for image in (5, 1, 1, 1, 4, 5)]
    for world_size in (1, 2, 3):
        loaders = all_ranks(numbered, world_size, augment=False, known_bad=bad if known else {})
        assert [image for each in loaders for image in ids_in(take(each, 1, 1)[0].images)] == expected
        assert all(ids(each, 1) == expected for each in loaders)
        met = [image_id for each in loaders for image_id in each.bad_images()]
        assert sorted(met) == ([] if known else sorted(bad))


def test_whether_a_picture_cut_short_is_replaced_depends_on_no_other_picture(tmp_path: Path) -> None:
    """What lies above the cut can be read, so it is for the step's window to say."""
    folder = CocoFolder(tmp_path)
    for number in range(8):
        folder.add(number, noise(np.random.default_rng(number), 90, 120), [(5, 5, 30, 30)], f"{number}.jpg")
    folder.write()
    for number in (0, 1, 2, 3):
        path = folder.image_folder / f"{number}.jpg"
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    index = read_index(folder.annotation_file, folder.image_folder)
    alone = loader(index, 8, seed=0, known_bad={})
    halves = [loader(index, 4, seed=0, world_size=2, rank=rank, known_bad={}) for rank in range(2)]
    seen = [set(ids(alone, step)) for step in range(3)]
    assert any(images & {0, 1, 2, 3} for images in seen)
    assert all(images != set(range(8)) for images in seen)
    for batch, *shares in zip(take(alone, 0, 3), *(take(half, 0, 3) for half in halves), strict=True):
        assert equal(together(tuple(shares)), batch)


def test_a_step_of_bad_images_alone_is_an_error(index: CocoIndex, tmp_path: Path) -> None:
    bad = dict.fromkeys(ids(loader(index, 2), 1), "it crashes")
    for first_step in (0, 1):
        with pytest.raises(UserError, match=r"step 1, all images of all ranks: .* it crashes"):
            take(loader(index, 2, known_bad=bad), first_step, 2)
    folder = noise_folder(tmp_path, 2)
    gone = read_index(folder.annotation_file, folder.image_folder)
    for path in folder.image_folder.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"step 0, all images .*: DALI cannot read .*; .*image id") as caught:
        take(loader(gone, 2, known_bad={}), 0, 1)
    assert "data.on_bad_image" not in str(caught.value)


def test_a_failure_that_no_file_explains_is_an_error_that_every_rank_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = noise_folder(tmp_path, 2)
    index = read_index(folder.annotation_file, folder.image_folder)
    (folder.image_folder / "100.png").unlink()
    monkeypatch.setattr(data.loader, "_why_it_fails", lambda *_: None)
    for failing in (loader(index, 2), DaliEvaluationLoader(index, options(2))):
        batches = failing.batches(0) if isinstance(failing, DaliTrainLoader) else iter(failing)
        with pytest.raises(UserError, match=r"DALI fails on a batch .*File mapping failed.*decoder=cpu"):
            next(batches)


def test_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)))
    assert [default_threads(ranks) for ranks in (1, 2, 5, 24)] == [8, 6, 2, 1]
