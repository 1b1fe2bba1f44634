from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssd import url
from ssd.boxes import default_boxes
from ssd.categories import COCO
from ssd.detect import detect
from ssd.errors import UserError
from ssd.hub import processing as utils
from ssd.hub.network import ssd300
from ssd.image import PictureError
from tests.golden_inputs import decode_inputs, golden_arrays
from tests.web_site import Site, serve_until, serving, without_length

pytestmark = pytest.mark.unit


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(url, "TIMEOUT_SECONDS", 0.5)
    with serving() as site:
        yield site


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """420×300, red grows to the right and green downwards."""
    row, column = np.mgrid[:300, :420]
    values = np.stack([column // 2, row // 2, 0 * row], axis=-1).astype(np.uint8)
    path = tmp_path / "a wide picture.png"
    Image.fromarray(values).save(path)
    return path


# prepare_input


def test_half_plus_a_half_is_the_pictures_middle(wide: Path):
    found = utils.prepare_input(str(wide))
    assert (found.dtype, found.shape) == (np.float32, (300, 300, 3))
    picture = np.asarray(Image.open(wide))
    np.testing.assert_allclose(found / 2 + 0.5, picture[:, 60:360] / 255, atol=1e-6)


def test_without_crop_the_whole_picture_is_squashed(wide: Path):
    found = utils.prepare_input(wide, crop=False) / 2 + 0.5
    squashed = Image.open(wide).resize((300, 300), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found, np.asarray(squashed) / 255, atol=1e-6)


def test_path_file_url_and_http_give_the_same(wide: Path, site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(wide.parent))
    site.files["/a%20wide%20picture.png?raw=1"] = wide.read_bytes()
    places = [wide, str(wide), wide.as_uri(), f"~/{wide.name}", f"{site.url}/a%20wide%20picture.png?raw=1"]
    found = [utils.prepare_input(place) for place in places]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_a_server_that_does_not_say_how_long_the_picture_is_will_do(wide: Path, site: Site):
    site.files["/p.png"] = wide.read_bytes()
    site.answers["/p.png"] = [without_length]
    assert np.array_equal(utils.prepare_input(f"{site.url}/p.png"), utils.prepare_input(wide))


def test_a_picture_that_cannot_be_fetched_is_named(wide: Path, site: Site):
    site.files |= {"/cut.png": wide.read_bytes(), "/page.png": b"<html>"}
    site.answers["/cut.png"] = [serve_until(50)]
    site.answers["/silent.png"] = [lambda request, _: request.connection.recv(1)]
    for path, reason in (
        ("/gone.png", "HTTP 404"),
        ("/cut.png", "50 of"),
        ("/silent.png", "timed out"),
        ("/page.png", "no picture of a known kind"),
    ):
        with pytest.raises(PictureError, match=f"{site.url}{path}.*{reason}"):
            utils.prepare_input(site.url + path)


@pytest.mark.parametrize(
    ("place", "reason"), [("s3://b/p.png", "kind s3"), ("file://host/p", "machine host")]
)
def test_another_kind_of_url_is_refused(place: str, reason: str):
    with pytest.raises(UserError, match=reason):
        utils.prepare_input(place)


def test_a_missing_picture_is_named():
    with pytest.raises(PictureError, match=r"/gone\.jpg does not exist"):
        utils.prepare_input("/gone.jpg")


# prepare_tensor


def test_the_tensor_is_what_the_network_was_trained_on(wide: Path):
    inputs = [utils.prepare_input(wide), utils.prepare_input(wide, crop=False)]
    tensor = utils.prepare_tensor(inputs)
    assert (tensor.dtype, tensor.shape, tensor.device.type) == (torch.float32, (2, 3, 300, 300), "cpu")
    assert tensor.is_contiguous()
    # Literal numbers, channel by channel.
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        for image, values in zip(tensor, inputs, strict=True):
            expected = ((values[:, :, channel] / 2 + 0.5) - mean) / std
            np.testing.assert_allclose(image[channel], expected, atol=1e-5)


def test_fp16_is_the_same_in_half_precision(wide: Path):
    inputs = [utils.prepare_input(wide)]
    assert torch.equal(utils.prepare_tensor(inputs, True), utils.prepare_tensor(inputs).half())


def test_the_inputs_are_left_as_they_were(wide: Path):
    given = utils.prepare_input(wide)
    before = given.copy()
    utils.prepare_tensor([given])
    assert np.array_equal(given, before)


@pytest.mark.parametrize("inputs", [np.zeros((300, 300, 3)), [np.zeros((3, 300, 300))], []])
def test_inputs_of_another_shape_are_refused(inputs: object):
    with pytest.raises(UserError, match="list of arrays 300×300×3"):
        utils.prepare_tensor(inputs)


# decode_results and pick_best


def test_detections_are_the_published_ones():
    golden = golden_arrays("decode.npz")
    results = utils.decode_results(decode_inputs())
    for index, (boxes_ltrb, classes, confidences) in enumerate(results):
        suffix = f"iou0.5_max20_{index}"
        # Golden detections ascend by score, ours descend.
        np.testing.assert_array_equal(classes, golden[f"labels_{suffix}"][::-1])
        np.testing.assert_allclose(boxes_ltrb, golden[f"boxes_{suffix}"][::-1], atol=1e-5)
        np.testing.assert_allclose(confidences, golden[f"scores_{suffix}"][::-1], atol=1e-5)
        assert (boxes_ltrb.dtype, classes.dtype, confidences.dtype) == (np.float32, np.int64, np.float32)
        assert len(classes) == 20


def test_half_precision_and_gradients_make_no_difference():
    offsets, logits = decode_inputs()  # exact in float16
    expected = utils.decode_results((offsets, logits))
    found = utils.decode_results((offsets.half().requires_grad_(), logits.half().requires_grad_()))
    for mine, other in zip(found, expected, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(mine, other, strict=True))


def test_the_threshold_is_the_recipes():
    offsets, logits = decode_inputs()
    counts = [len(each.scores) for each in detect(offsets, logits, default_boxes(), 0.05, 0.5, 20)]
    assert [len(each[2]) for each in utils.decode_results((offsets, logits))] == counts
    # One box of one class at a time, just above and just below 0.05 of 81 classes.
    for logit, found in ((1.45, 1), (1.40, 0)):
        one = torch.zeros(1, 81, 8732)
        one[0, 0] = 20
        one[0, 0, 4000] = 0
        one[0, 7, 4000] = logit
        assert len(utils.decode_results((torch.zeros(1, 4, 8732), one))[0][0]) == found


def test_only_confidences_above_the_threshold_are_picked():
    detections = [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array([5, 1, 9]),
        np.array([0.9, 0.5, 0.2], dtype=np.float32),
    ]
    boxes_ltrb, classes, confidences = utils.pick_best(detections, 0.5)
    assert boxes_ltrb.tolist() == [[0, 1, 2, 3]]
    assert classes.tolist() == [5]
    assert confidences.tolist() == [np.float32(0.9)]
    assert len(utils.pick_best(detections)[0]) == 2  # at 0.3
    assert len(detections[0]) == 3


def test_nothing_found_is_empty_arrays_all_the_way(wide: Path):
    network = ssd300("resnet18", None, None).eval()
    tensor = utils.prepare_tensor([utils.prepare_input(wide)])
    with torch.no_grad():
        offsets, logits = network(tensor)
    logits[:, 0] = 1000  # background everywhere
    results = utils.decode_results((offsets, logits))
    assert len(results) == 1
    for boxes_ltrb, classes, confidences in (results[0], utils.pick_best(results[0], 0.4)):
        assert (boxes_ltrb.shape, classes.shape, confidences.shape) == ((0, 4), (0,), (0,))
        assert (boxes_ltrb.dtype, classes.dtype, confidences.dtype) == (np.float32, np.int64, np.float32)


def test_one_picture_without_detections_does_not_shift_the_others():
    offsets, logits = decode_inputs()
    logits[1, 0] = 1000
    results = utils.decode_results((offsets, logits))
    assert [len(each[0]) for each in results] == [20, 0, 20]


# Names


def test_the_names_are_cocos_in_order():
    names = utils.get_coco_object_dictionary()
    assert (len(names), names[0], names[16], names[79]) == (80, "person", "dog", "toothbrush")
    names.clear()
    assert utils.get_coco_object_dictionary() == list(COCO.names)
