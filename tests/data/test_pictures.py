"""Which images are bad is what DALI makes of them in training, at whatever byte a file is damaged.

Each file is opened once in each of its states, and without the bad images the data set stays what it was.
"""

import io
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import pictures
from data.augment import Augmentation
from data.graph import GraphOptions, encode_path, evaluation_graph, training_graph
from data.index import CocoIndex, Selection, read_index
from data.pictures import ImageDefect, exclude, find_bad_images, inspect_all
from ssd.console import RunConsole
from ssd.errors import UserError
from ssd.image import PictureError, read_picture
from tests.data.coco_folder import crashing_jpeg_2000, noise, noise_folder
from tests.data.test_graph import fed

pytestmark = [pytest.mark.unit, pytest.mark.slow]

WIDTH, HEIGHT = 64, 48
IMAGES = 6


def picture(mode: str = "RGB") -> Image.Image:
    """A picture with some structure, so that its codes are neither empty nor all different."""
    small = Image.fromarray(noise(np.random.default_rng(8), 12, 9))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, picture_format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, picture_format, **options)
    return file.getvalue()


def encoded(picture_format: str, mode: str = "RGB", **options: Any) -> bytes:
    return saved(picture(mode), picture_format, **options)


def sixteen_bits(picture_format: str) -> bytes:
    grey = np.random.default_rng(2).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)
    return saved(Image.fromarray(grey), picture_format)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif)


GOOD = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "restart markers": encoded("JPEG", restart_marker_blocks=2),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
    "turned by EXIF": turned(),
    "mpo": encoded("MPO", save_all=True, append_images=[picture()]),
    "trailing bytes": encoded("JPEG") + b"trailing",
    "png": encoded("PNG"),
    "palette png": encoded("PNG", "P"),
    "one bit png": encoded("PNG", "1"),
    "transparent png": encoded("PNG", "RGBA"),
    "16 bit png": sixteen_bits("PNG"),
    "moving png": encoded("PNG", save_all=True, append_images=[picture()]),
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "moving webp": encoded("WEBP", save_all=True, append_images=[picture().rotate(180)]),
    "bmp": encoded("BMP"),
    "palette bmp": encoded("BMP", "P"),
    "tiff": encoded("TIFF"),
    "lzw tiff": encoded("TIFF", compression="tiff_lzw"),
    "16 bit tiff": sixteen_bits("TIFF"),
    "jpeg 2000": encoded("JPEG2000"),
    "ppm": encoded("PPM"),
}
UNSUPPORTED = {name: encoded(name) for name in ("GIF", "ICO", "TGA", "AVIF")}


def write_all(folder: Path, contents: list[bytes]) -> list[str]:
    paths = [str(folder / f"{number}.jpg") for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    return paths


def inspect(paths: list[str], decode: bool = True, **given: Any) -> dict[int, ImageDefect]:
    return inspect_all(paths, np.tile((WIDTH, HEIGHT), (len(paths), 1)), decode, workers=1, **given)


def decodes(paths: list[str]) -> list[bool]:
    """Tell which files the graph of an evaluation takes."""
    options = GraphOptions(batch_size=1, dtype=torch.float32, threads=1, device_id=None)
    decoded = []
    for path in paths:
        graph = evaluation_graph([([encode_path(path)],)], options)
        try:
            graph.run()
            decoded.append(True)
        except RuntimeError:
            decoded.append(False)
    return decoded


def test_verdict_of_a_file_whole_or_cut_is_that_of_the_evaluation_graph(tmp_path: Path) -> None:
    whole = [*GOOD.values(), *UNSUPPORTED.values()]
    paths = write_all(
        tmp_path, whole + [text[: len(text) * part // 8] for text in whole for part in (1, 4, 7)]
    )
    defects = inspect(paths)
    assert [number not in defects for number in range(len(paths))] == decodes(paths)
    assert not any(number in defects for number in range(len(GOOD)))


def test_a_file_cut_at_any_byte_is_found_and_decoders_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    contents = []
    for kind in ("jpeg", "progressive", "restart markers", "grey jpeg", "cmyk jpeg", "png", "webp", "bmp"):
        whole = GOOD[kind]
        lengths = sorted({*range(1, len(whole), 97), *range(len(whole) - 20, len(whole))})
        contents += [whole[:length] for length in lengths]
    # As a download leaves it that reserved its space and broke off.
    contents.append(GOOD["jpeg"][: len(GOOD["jpeg"]) // 2].ljust(len(GOOD["jpeg"]), b"\0"))
    defects = inspect(write_all(tmp_path, contents))
    assert [*defects] == [*range(len(contents))]
    assert {defect.kind for defect in defects.values()} <= {"undecodable", "not_an_image"}
    assert capfd.readouterr() == ("", "")


def absurd_png() -> bytes:
    content = bytearray(GOOD["png"])
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def forbid(path: Path) -> None:
    path.write_bytes(GOOD["jpeg"])
    path.chmod(0)


CASES: dict[str, tuple[Callable[[Path], object] | None, str, str]] = {  # how it is made, kind, detail
    "missing": (None, "missing", "there is no such file"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "missing", "there is no such file"),
    "a\0b": (None, "unreadable", "cannot be read"),
    "\ud800": (None, "unreadable", "cannot be read"),
    "x" * 300: (None, "unreadable", "cannot be read"),
    "empty": (write(b""), "empty", "0 bytes"),
    "folder": (Path.mkdir, "no_file", "not a regular file"),
    "pipe": (os.mkfifo, "no_file", "not a regular file"),
    "page": (write(b"<html>404</html>"), "not_an_image", "no reader knows it"),
    "another size": (
        write(saved(Image.new("RGB", (WIDTH, 9)))),
        "size_unlike",
        "has 64×9 pixels, the annotation file says 64×48",
    ),
    "absurd": (write(absurd_png()), "too_many_pixels", "100000×100000"),
    "crash": (write(crashing_jpeg_2000()), "undecodable", "the decoder crashes"),
} | {
    name: (write(text), "unsupported_format", f"DALI does not read {name}; save it as JPEG or PNG")
    for name, text in UNSUPPORTED.items()
}
if os.geteuid() != 0:  # the superuser may read every file
    CASES["forbidden"] = (forbid, "unreadable", "permissions forbid it")


@pytest.mark.parametrize("decode", [False, True])
def test_each_bad_file_and_no_other_is_said_to_be_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decode: bool
) -> None:
    """In groups that end anywhere, from a folder with another package called data."""
    monkeypatch.setattr(pictures, "_GROUP", 7)
    monkeypatch.setattr(pictures, "_DECODED_PIXELS", 2 * WIDTH * HEIGHT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/__init__.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    paths = []
    for (name, (make, _, _)), good in zip(CASES.items(), [*GOOD.values()][: len(CASES)], strict=True):
        paths += [str(tmp_path / f"{name}.jpg"), str(tmp_path / f"good beside {len(paths)}.jpg")]
        if make is not None:
            make(Path(paths[-2]))
        Path(paths[-1]).write_bytes(good)
    done: list[int] = []
    defects = inspect(paths, decode, report=done.append)
    assert [*defects] == [*range(0, len(paths), 2)]
    for (name, (_, kind, detail)), defect in zip(CASES.items(), defects.values(), strict=True):
        assert (name, defect.kind) == (name, kind)
        assert detail in defect.detail
    assert sum(done) == len(paths)
    assert max(done) == 7


TIFFS = {
    "RGB": encoded("TIFF"),
    "16 bits": sixteen_bits("TIFF"),
    "big": encoded("TIFF", big_tiff=True),
    "floats": encoded("TIFF", "F"),
    "big, floats": encoded("TIFF", "F", big_tiff=True),
    "integers": encoded("TIFF", "I"),
}


def test_a_tiff_is_bad_where_predict_refuses_it(tmp_path: Path) -> None:
    """DALI takes a float's 1 for white, whatever its range."""
    paths = [str(tmp_path / f"{name}.tif") for name in TIFFS]
    for path, content in zip(paths, TIFFS.values(), strict=True):
        Path(path).write_bytes(content)
    for path in paths[:3]:
        read_picture(Path(path))
    for path in paths[3:]:
        with pytest.raises(PictureError):
            read_picture(Path(path))
    defects = inspect(paths)
    assert [*defects] == [3, 4, 5]
    assert {defect.kind for defect in defects.values()} == {"unsupported_format"}


def test_file_that_hangs_the_decoder_is_the_bad_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_all(tmp_path, [GOOD["jpeg"], GOOD["png"], b""])
    Path(paths[2]).unlink()
    os.mkfifo(paths[2])
    monkeypatch.setattr(pictures, "READ_TIMEOUT_S", 0.5)
    with closing(pictures._DecodeWorker(threads=1)) as worker:
        results = worker.read([paths[0], paths[2], paths[1]], decode=True)
    hung = "the decoder crashes, or has not come to an end after 0.5 s"
    assert results == [(WIDTH, HEIGHT), hung, (WIDTH, HEIGHT)]


FUZZED = [GOOD["jpeg"], GOOD["progressive"], GOOD["png"], GOOD["webp"], GOOD["bmp"], UNSUPPORTED["GIF"]]


def test_damaged_bytes_are_judged_and_what_passes_trains(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    contents = []
    for number in range(300):
        content = bytearray(FUZZED[number % len(FUZZED)])
        header = number % 2 * len(content) or 100  # where most of what can be damaged stands
        for position in rng.integers(0, min(header, len(content)), rng.integers(1, 20)).tolist():
            content[position] = rng.integers(256)
        contents.append(bytes(content))
    paths = write_all(tmp_path, contents)
    defects = inspect(paths)
    assert inspect(paths, decode=False).keys() <= defects.keys()
    good = [path for number, path in enumerate(paths) if number not in defects]
    assert all(decodes(good))
    if count := len(good):
        windows = np.random.default_rng(count).uniform(0, 0.5, (count, 2)).tolist()
        quarters = [Augmentation(window_ltwh=(left, top, 0.5, 0.5)) for left, top in windows]
        training_graph([fed(good, quarters)], GraphOptions(count, torch.float32, 1, None)).run()


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    folder = noise_folder(tmp_path / "noise", IMAGES)
    return read_index(folder.annotation_file, folder.image_folder)


def test_excluding_images_keeps_every_other_as_it_was(index: CocoIndex) -> None:
    left = exclude(index, [int(index.image_ids[0]), int(index.image_ids[3])])
    assert left.image_ids.tolist() == index.image_ids[[1, 2, 4, 5]].tolist()
    for new, old in enumerate((1, 2, 4, 5)):
        assert left.path(new) == index.path(old)
        for ours, theirs in zip(left.boxes_of(new), index.boxes_of(old), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert left.dropped["bad images (data.on_bad_image)"] == 2
    assert exclude(index, []) is index
    with pytest.raises(UserError, match="no image is left"):
        exclude(index, index.image_ids.tolist())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each check opened; those of under 30 bytes are bad."""
    opened: list[int] = []

    def check(paths: list[str], *_: object) -> dict[int, ImageDefect]:
        opened.append(len(paths))
        short = [number for number, path in enumerate(paths) if os.stat(path).st_size < 30]
        return dict.fromkeys(short, ImageDefect("undecodable", "it is short"))

    monkeypatch.setattr(pictures, "inspect_all", check)
    return opened


def find(index: CocoIndex, cache: Path, decode: bool = False) -> dict[int, str]:
    return find_bad_images(index, decode, threads=1, cache=cache, console=RunConsole(is_main=True))


def cut(index: CocoIndex, image: int, size: int = 20) -> int:
    """Shorten an image file; return the image's id."""
    path = Path(index.path(image))
    path.write_bytes(path.read_bytes()[:size])
    return int(index.image_ids[image])


def test_bad_images_are_found_by_header_or_by_every_pixel(index: CocoIndex, cache: Path) -> None:
    short, empty, missing = cut(index, 1), cut(index, 2, 0), int(index.image_ids[4])
    Path(index.path(4)).unlink()
    inner = Path(index.path(5))
    content = inner.read_bytes()
    inner.write_bytes(content[: len(content) // 2] + bytes(500) + content[len(content) // 2 + 500 :])
    bad = find(index, cache)
    assert [*bad] == [short, empty, missing]
    assert bad[short].startswith(f"{index.path(1)} (image id {short}): its header is cut short")
    assert bad[missing] == f"{index.path(4)} (image id {missing}): there is no such file"
    assert find(index, cache, decode=True).keys() == {short, empty, missing, int(index.image_ids[5])}


def test_only_files_that_changed_are_opened_again(index: CocoIndex, cache: Path, opened: list[int]) -> None:
    bad = cut(index, 1)
    for _ in range(3):
        assert find(index, cache).keys() == {bad}
    worse = cut(index, 3)
    for _ in range(2):
        assert find(index, cache).keys() == {bad, worse}
    path = Path(index.path(4))
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p leaves it
    for _ in range(2):
        assert find(index, cache).keys() == {bad, worse}
    path.rename(path.with_suffix(".aside"))
    for _ in range(2):  # what can't be looked up is looked up again
        assert find(index, cache).keys() == {bad, worse, int(index.image_ids[4])}
    path.with_suffix(".aside").rename(path)
    assert find(index, cache).keys() == {bad, worse}
    assert opened == [IMAGES, 1, 1, 1]
    (entry,) = cache.glob("*.json")
    for damaged in (entry.read_bytes()[:-1], b"", b"\xff", b"[]"):
        entry.write_bytes(damaged)
        assert find(index, cache).keys() == {bad, worse}
        assert opened.pop() == IMAGES


def test_another_selection_opens_only_what_is_new_and_another_size_is_another_question(
    index: CocoIndex, cache: Path, opened: list[int]
) -> None:
    source = index.source
    first_two = read_index(source.annotation_file, source.image_folder, Selection(limit=2))
    bad = cut(index, 1)
    for selected in (first_two, index, first_two, replace(index, boxes_ltrb=index.boxes_ltrb / 2)):
        assert find(selected, cache).keys() == {bad}
    assert opened == [2, IMAGES - 2]
    wrong = replace(index, sizes_px=index.sizes_px + np.arange(IMAGES)[:, None] // (IMAGES - 1))
    assert find(wrong, cache).keys() == {bad}
    assert opened == [2, IMAGES - 2, 1]


@pytest.mark.usefixtures("opened")
def test_known_verdicts_are_read_from_a_cache_that_cannot_be_written(
    index: CocoIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = cut(index, 1)
    find(index, cache)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert find(index, cache).keys() == {bad}
    cut(index, 2)
    with pytest.raises(UserError, match=r"can't be written \(Permission denied\); give another data\.cache="):
        find(index, cache)
