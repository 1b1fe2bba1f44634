"""What a file is accused of is what DALI makes of it in training, at whatever byte it is damaged."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import image_files
from data.graph import GraphOptions, TrainingInputs, encode_path, evaluation_graph, training_graph
from data.image_files import ImageDefect, Level, inspect, inspect_all
from data.trial_process import TrialProcess
from tests.data.coco_folder import noise

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 64, 48


def picture(mode: str = "RGB") -> Image.Image:
    """A picture with some structure, so that its codes are neither empty nor all different."""
    small = Image.fromarray(noise(np.random.default_rng(8), 12, 9))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture_format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, picture_format, **options)
    return file.getvalue()


def sixteen_bits(picture_format: str) -> bytes:
    file = io.BytesIO()
    grey = np.random.default_rng(2).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)
    Image.fromarray(grey).save(file, picture_format)
    return file.getvalue()


GOOD = {
    "jpeg": encoded("JPEG"),
    "progressive": encoded("JPEG", progressive=True),
    "restart markers": encoded("JPEG", restart_marker_blocks=2),
    "grey jpeg": encoded("JPEG", "L"),
    "cmyk jpeg": encoded("JPEG", "CMYK"),
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


def write_all(folder: Path, texts: list[bytes]) -> list[str]:
    paths = [str(folder / f"{number}.jpg") for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        Path(path).write_bytes(text)
    return paths


def judge(
    folder: Path, texts: list[bytes], level: Level = Level.full, size_px: tuple[int, int] = (WIDTH, HEIGHT)
) -> dict[int, ImageDefect]:
    return inspect_all(write_all(folder, texts), np.tile(size_px, (len(texts), 1)), level, workers=1)


def decodes(paths: list[str]) -> list[bool]:
    """Tell which files the graph of an evaluation takes."""
    options = GraphOptions(batch_size=1, dtype=torch.float32, threads=1, device_id=None)
    graph = evaluation_graph([([encode_path(path)],) for path in paths], options)
    taken = []
    for _ in paths:
        try:
            graph.run()
        except RuntimeError:
            taken.append(False)
        else:
            taken.append(True)
    return taken


@pytest.mark.parametrize("level", Level)
def test_no_good_file_of_any_kind_is_accused(tmp_path: Path, level: Level) -> None:
    assert judge(tmp_path, [*GOOD.values()], level) == {}


@pytest.mark.parametrize("level", Level)
def test_kinds_that_dali_does_not_read_are_named(tmp_path: Path, level: Level) -> None:
    defects = judge(tmp_path, [*UNSUPPORTED.values()], level)
    for place, name in enumerate(UNSUPPORTED):
        assert defects[place].kind == "unsupported format"
        assert f"DALI does not read {name}; save it as JPEG or PNG" in defects[place].detail


def test_a_file_cut_at_any_byte_is_found(tmp_path: Path) -> None:
    texts = []
    for kind in ("jpeg", "progressive", "restart markers", "grey jpeg", "cmyk jpeg", "png", "webp", "bmp"):
        whole = GOOD[kind]
        lengths = sorted({*range(1, len(whole), 37), *range(len(whole) - 20, len(whole))})
        texts += [whole[:length] for length in lengths]
    defects = judge(tmp_path, texts)
    assert [*defects] == [*range(len(texts))]
    assert {defect.kind for defect in defects.values()} <= {"undecodable", "not an image"}


def test_zeros_in_place_of_the_second_half_are_found(tmp_path: Path) -> None:
    """As a download leaves them that reserved its space and broke off."""
    whole = GOOD["jpeg"]
    (defect,) = judge(tmp_path, [whole[: len(whole) // 2].ljust(len(whole), b"\0")]).values()
    assert defect.kind == "undecodable"
    assert "Premature end of JPEG data" in defect.detail


def test_verdict_of_a_whole_file_is_that_of_the_evaluation_graph(tmp_path: Path) -> None:
    good = [*GOOD.values(), *UNSUPPORTED.values()]
    texts = good + [text[: len(text) * part // 8] for text in good for part in range(1, 8)]
    defects = judge(tmp_path, texts)
    taken = decodes([str(tmp_path / f"{number}.jpg") for number in range(len(texts))])
    assert [place not in defects for place in range(len(texts))] == taken
    assert 0 < sum(taken) < len(taken)


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def text_file(text: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(text)

    return write


@pytest.mark.parametrize(
    ("spoil", "kind", "detail"),
    [
        (missing, "missing", "there is no such file"),
        (dangling, "missing", "a link to nothing"),
        (text_file(b""), "empty", "0 bytes"),
        (Path.mkdir, "no file", "not a regular file"),
        (os.mkfifo, "no file", "not a regular file"),
        (text_file(b"<html>404</html>"), "not an image", "it begins with b'<html>404</h'"),
        (text_file(bytes(5000)), "not an image", "it begins with b'\\\\x00"),
    ],
)
@pytest.mark.parametrize("level", Level)
def test_what_is_no_picture_is_said_to_be_what_it_is(
    tmp_path: Path, spoil: Callable[[Path], None], kind: str, detail: str, level: Level
) -> None:
    path = tmp_path / "spoilt.jpg"
    spoil(path)
    defect = inspect(path, (WIDTH, HEIGHT), level)
    assert defect is not None
    assert defect.kind == kind
    assert detail.replace("\\\\", "\\") in defect.detail


@pytest.mark.parametrize("name", ["a\0b.jpg", "\ud800.jpg", "x" * 300])
def test_name_that_no_file_can_have_is_reported(tmp_path: Path, name: str) -> None:
    defect = inspect(tmp_path / name, (WIDTH, HEIGHT), Level.header)
    assert defect is not None
    assert defect.kind == "unreadable"


def test_size_must_be_the_annotation_files(tmp_path: Path) -> None:
    for size_px in ((WIDTH + 1, HEIGHT), (WIDTH, HEIGHT - 1)):
        (defect,) = judge(tmp_path, [GOOD["jpeg"]], Level.header, size_px).values()
        assert defect.kind == "size unlike"
        assert (
            f"has {WIDTH}×{HEIGHT} pixels, the annotation file says {size_px[0]}×{size_px[1]}"
            in defect.detail
        )
    (defect,) = judge(tmp_path, [GOOD["jpeg"]], Level.header, (HEIGHT, WIDTH)).values()
    assert "width and height exchanged" in defect.detail


def test_size_is_that_of_the_pixels_not_of_the_picture_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encoded("JPEG", exif=exif)
    assert judge(tmp_path, [rotated]) == {}
    assert judge(tmp_path, [rotated], size_px=(HEIGHT, WIDTH))[0].kind == "size unlike"


@pytest.mark.parametrize("level", Level)
def test_absurd_dimensions_are_refused_before_decoding(tmp_path: Path, level: Level) -> None:
    text = bytearray(GOOD["png"])
    text[16:24] = (100_000).to_bytes(4, "big") * 2
    (defect,) = judge(tmp_path, [bytes(text)], level, (100_000, 100_000)).values()
    assert defect.kind == "too many pixels"
    assert "100000×100000" in defect.detail


def test_bad_files_are_named_by_their_place_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_CHUNK_DECODED", 7)
    monkeypatch.setattr(image_files, "_BATCH_HEADERS", 3)
    monkeypatch.setattr(image_files, "_BATCH_PIXELS", 2 * WIDTH * HEIGHT)
    texts = [GOOD["jpeg"]] * 20
    for place in (0, 6, 7, 13, 19):
        texts[place] = GOOD["jpeg"][:-5]
    texts[8] = b"text"
    done: list[int] = []
    paths = write_all(tmp_path, texts)
    sizes_px = np.tile((WIDTH, HEIGHT), (20, 1))
    defects = inspect_all(paths, sizes_px, Level.full, workers=2, report=done.append)
    assert [*defects] == [0, 6, 7, 8, 13, 19]
    assert done == [7, 7, 6]


def test_no_files_have_no_defects() -> None:
    assert inspect_all([], np.empty((0, 2), np.int64), Level.full, workers=1) == {}


def crashing_jpeg_2000() -> bytes:
    """A JPEG 2000 with tiles of width 0, by which the parser in DALI divides."""
    text = bytearray(GOOD["jpeg 2000"])
    size_marker = text.index(b"\xff\x51")
    text[size_marker + 22 : size_marker + 26] = bytes(4)
    return bytes(text)


@pytest.mark.parametrize("level", Level)
def test_file_that_crashes_the_decoder_is_accused_alone(tmp_path: Path, level: Level) -> None:
    texts = [GOOD["jpeg"], GOOD["png"], crashing_jpeg_2000(), GOOD["jpeg 2000"], GOOD["webp"]]
    defects = judge(tmp_path, texts, level)
    assert [*defects] == [2]
    assert "crashes (SIG" in defects[2].detail


def test_file_that_hangs_the_decoder_is_accused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_all(tmp_path, [GOOD["jpeg"], GOOD["png"]])
    hanging = str(tmp_path / "pipe")
    os.mkfifo(hanging)
    with TrialProcess(threads=1) as trial:
        assert [*trial.read([paths], decode=True)] == [[(WIDTH, HEIGHT)] * 2]
        monkeypatch.setattr("data.trial_process.GROUP_TIMEOUT_S", 0.5)
        results = [*trial.read([[paths[0], hanging, paths[1]]], decode=True)]
    assert results == [[(WIDTH, HEIGHT), "the decoder has not come to an end after 0.5 s", (WIDTH, HEIGHT)]]


def test_file_is_accused_only_as_the_first_that_a_process_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a damaged file leaves behind in memory can make the next one crash, which is sound by itself."""
    paths = write_all(tmp_path, [GOOD["jpeg"], GOOD["png"]])
    Path(paths[1]).unlink()
    os.mkfifo(paths[1])
    monkeypatch.setattr("data.trial_process.GROUP_TIMEOUT_S", 0.5)
    with TrialProcess(threads=1) as trial:
        results = trial.read([[paths[0]], [paths[1]]], decode=True)
        assert next(results) == [(WIDTH, HEIGHT)]
        stop = trial._stop

        def stop_and_heal() -> None:
            stop()
            Path(paths[1]).unlink()
            Path(paths[1]).write_bytes(GOOD["png"])

        monkeypatch.setattr(trial, "_stop", stop_and_heal)
        assert next(results) == [(WIDTH, HEIGHT)]
        monkeypatch.undo()


def test_a_package_of_the_users_called_data_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/__init__.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert judge(tmp_path, [GOOD["jpeg"]]) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read every file")
def test_forbidden_file_is_reported(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path, [GOOD["jpeg"]])
    Path(path).chmod(0)
    defect = inspect(Path(path), (WIDTH, HEIGHT), Level.header)
    assert defect is not None
    assert (defect.kind, "permissions forbid it" in defect.detail) == ("unreadable", True)


def test_mistake_of_the_trial_process_is_no_verdict(tmp_path: Path) -> None:
    (path,) = write_all(tmp_path, [GOOD["jpeg"]])
    with TrialProcess(threads="two") as trial, pytest.raises(RuntimeError, match="reading pictures on trial"):
        next(trial.read([[path]], decode=True))


def test_decoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    judge(tmp_path, [text[:-5] for text in GOOD.values()])
    assert capfd.readouterr() == ("", "")


FUZZED = [GOOD["jpeg"], GOOD["progressive"], GOOD["png"], GOOD["webp"], GOOD["bmp"], UNSUPPORTED["GIF"]]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with bits flipped, bytes overwritten, cut short, or spliced with another."""
    text = bytearray(draw(st.sampled_from(FUZZED)))
    places = st.integers(0, len(text) - 1)
    match draw(st.sampled_from(["flip", "header", "cut", "splice", "replace"])):
        case "flip":
            for bit in draw(st.lists(st.integers(0, 8 * len(text) - 1), min_size=1, max_size=20)):
                text[bit // 8] ^= 1 << bit % 8
        case "header":
            start = draw(st.integers(0, 80))
            text[start : start + 4] = draw(st.binary(min_size=4, max_size=4))
        case "cut":
            del text[draw(places) :]
        case "splice":
            other = draw(st.sampled_from(FUZZED))
            text[draw(places) :] = other[draw(st.integers(0, len(other) - 1)) :]
        case "replace":
            start = draw(places)
            text[start : start + draw(st.integers(0, 50))] = draw(st.binary(max_size=50))
    return bytes(text)


@settings(
    derandomize=True,
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(texts=st.lists(damaged(), min_size=40, max_size=60))
def test_damaged_bytes_are_judged_and_what_passes_trains(tmp_path: Path, texts: list[bytes]) -> None:
    paths = write_all(tmp_path, texts)
    sizes_px = np.tile((WIDTH, HEIGHT), (len(paths), 1))
    defects = inspect_all(paths, sizes_px, Level.full, workers=1)
    assert inspect_all(paths, sizes_px, Level.header, workers=1).keys() <= defects.keys()
    good = [path for place, path in enumerate(paths) if place not in defects]
    assert all(decodes(good))
    windows = np.random.default_rng(len(good)).uniform(0, 0.5, (len(good), 2)).astype(np.float32)
    train_on(good, windows)


def train_on(paths: list[str], window_starts: np.ndarray) -> None:
    """Run the training graph on windows of a quarter of each picture."""
    count = len(paths)
    inputs = TrainingInputs(
        paths=[encode_path(path) for path in paths],
        window_start=window_starts,
        window_size=np.full((count, 2), 0.5, np.float32),
        flip=np.zeros(count, np.int32),
        hue=np.zeros(count, np.float32),
        saturation=np.ones(count, np.float32),
        brightness=np.ones(count, np.float32),
        contrast=np.ones(count, np.float32),
        boxes_ltrb=[np.zeros((0, 4), np.float32)] * count,
        labels=[np.zeros(0, np.int32)] * count,
    )
    if count:
        training_graph([inputs], GraphOptions(count, torch.float32, 1, None)).run()
