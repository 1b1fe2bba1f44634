import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ssd import download
from ssd.errors import UserError
from ssd.hub.weight_files import NVIDIA_URL, nvidia_weights, weight_file
from tests.web_site import Site, serve_until, serving, status

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
OLD, NEW = b"old weights" * 1000, b"new weights" * 1000


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", ())
    with serving() as site:
        site.files["/a/weights.pt"] = OLD
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub puts what it downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return Path(torch.hub.get_dir(), "checkpoints")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Where nvidia_ssd's weights lie


def test_without_the_environment_variable_they_are_nvidias(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NVIDIA_SSD_WEIGHTS", raising=False)
    assert nvidia_weights() == NVIDIA_URL
    assert NVIDIA_URL.startswith(
        "https://api.ngc.nvidia.com/v2/models/nvidia/ssd_pyt_ckpt_amp/versions/20.06.0/"
    )
    assert NVIDIA_URL.endswith("/files/nvidia_ssdpyt_amp_200703.pt")


def test_the_environment_variable_names_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NVIDIA_SSD_WEIGHTS", "/weights/mine.pt")
    assert nvidia_weights() == "/weights/mine.pt"


# Files of this machine


@pytest.mark.parametrize("name", ["plain.pt", "with#hash.pt", "C:drive.pt", "~tilde.pt", "sp ace.pt"])
def test_a_path_is_taken_as_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert weight_file(name) == Path(name)
    assert weight_file(tmp_path / name) == tmp_path / name


def test_a_tilde_is_ones_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert weight_file("~/w.pt") == Path("/home/me/w.pt")


def test_a_file_url_is_a_path_and_nothing_is_copied(tmp_path: Path, cache: Path):
    file = tmp_path / "my weights.pt"
    file.write_bytes(OLD)
    for url in (
        file.as_uri(),
        file.as_uri().replace("///", "//localhost/"),
        f"{file.as_uri()}#sha256={sha256(OLD)}",
    ):
        assert weight_file(url) == file
    assert not cache.exists()


def test_a_file_of_another_sha256_is_refused(tmp_path: Path):
    file = tmp_path / "w.pt"
    file.write_bytes(NEW)
    with pytest.raises(UserError, match=f"its sha256 is {sha256(NEW)}, not {sha256(OLD)}"):
        weight_file(f"{file.as_uri()}#sha256={sha256(OLD)}")
    with pytest.raises(UserError, match="does not exist"):
        weight_file(f"{file.as_uri()}x#sha256={sha256(OLD)}")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3://bucket/w.pt", "a URL of kind s3"),
        ("file://server/w.pt", "of the machine server"),
        ("http://127.0.0.1/w.pt#md5=abc", "must be #sha256="),
        ("http://127.0.0.1/w.pt#sha256=abc", "must be #sha256="),
    ],
)
def test_a_place_that_cannot_be_understood_is_refused(place: str, reason: str):
    with pytest.raises(UserError, match=reason):
        weight_file(place)


# Downloads


def test_a_url_is_downloaded_once_under_a_name_people_know(site: Site, cache: Path):
    file = weight_file(f"{site.url}/a/weights.pt")
    assert file.read_bytes() == OLD
    assert weight_file(f"{site.url}/a/weights.pt") == file
    assert len(site.requests) == 1
    assert list(cache.iterdir()) == [file]
    assert file.name.startswith("weights-")


def test_files_of_one_name_do_not_meet(site: Site):
    site.files |= {"/b/weights.pt": NEW, "/a/weights.pt?version=2": NEW * 2}
    found = [weight_file(site.url + path).read_bytes() for path in site.files]
    assert found == [OLD, NEW, NEW * 2]


def test_the_right_sha256_is_taken_and_a_wrong_one_leaves_nothing(site: Site, cache: Path):
    url = f"{site.url}/a/weights.pt"
    with pytest.raises(UserError, match=f"sha256 is {sha256(OLD)}, expected {sha256(NEW)}"):
        weight_file(f"{url}#sha256={sha256(NEW)}")
    assert list(cache.glob("*.pt")) == []
    assert weight_file(f"{url}#sha256={sha256(OLD).upper()}").read_bytes() == OLD


def test_a_file_cached_without_a_sha256_does_not_pass_for_one_with(site: Site):
    weight_file(f"{site.url}/a/weights.pt")
    with pytest.raises(UserError, match="sha256"):
        weight_file(f"{site.url}/a/weights.pt#sha256={sha256(NEW)}")


def test_force_reload_downloads_again(site: Site, cache: Path):
    file = weight_file(f"{site.url}/a/weights.pt")
    site.files["/a/weights.pt"] = NEW
    assert weight_file(f"{site.url}/a/weights.pt") == file
    assert file.read_bytes() == OLD
    assert weight_file(f"{site.url}/a/weights.pt", force_reload=True) == file
    assert file.read_bytes() == NEW
    assert list(cache.iterdir()) == [file]


def test_a_failed_reload_leaves_what_was_there(site: Site, cache: Path):
    file = weight_file(f"{site.url}/a/weights.pt")
    site.answers["/a/weights.pt"] = [serve_until(100)]
    with pytest.raises(UserError, match="100 of"):
        weight_file(f"{site.url}/a/weights.pt", force_reload=True)
    assert file.read_bytes() == OLD
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize("answer", [serve_until(100), status(503), status(404)])
def test_a_failed_download_says_what_to_do_and_does_not_pass_for_a_file(answer, site: Site):
    site.answers["/a/weights.pt"] = [answer]
    with pytest.raises(UserError, match=r"weights=.*NVIDIA_SSD_WEIGHTS=PATH"):
        weight_file(f"{site.url}/a/weights.pt")
    assert weight_file(f"{site.url}/a/weights.pt").read_bytes() == OLD


def test_no_server_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", ())
    with serving() as gone:
        url = f"{gone.url}/w.pt"
    with pytest.raises(UserError, match="NVIDIA_SSD_WEIGHTS=PATH"):
        weight_file(url)


def test_the_download_is_announced_with_its_progress(site: Site, capsys: pytest.CaptureFixture[str]):
    site.files["/a/weights.pt"] = bytes(3 << 20)
    file = weight_file(f"{site.url}/a/weights.pt")
    said = capsys.readouterr().err
    assert said.startswith(f"Downloading {site.url}/a/weights.pt to {file}")
    assert said.endswith(" 100 %\n")
    weight_file(f"{site.url}/a/weights.pt")
    assert capsys.readouterr().err == ""


def test_several_that_reload_at_once_each_get_a_whole_file(site: Site, cache: Path):
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                weight_file(f"{site.url}/a/weights.pt", force_reload=True).read_bytes()
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [OLD] * 4
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_several_processes_download_once(site: Site):
    url = f"{site.url}/a/weights.pt"
    program = f"from ssd.hub.weight_files import weight_file; print(weight_file({url!r}).stat().st_size)"
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in running] == [f"{len(OLD)}\n"] * 3
    assert len(site.requests) == 1
