"""Downloads: whole, resumed, refused, and what is left behind each time."""

import errno
import hashlib
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import pytest

from ssd import download as module
from ssd import url as url_module
from ssd.download import DownloadError, download
from tests.web_site import (
    Site,
    claiming,
    etag,
    pausing_after,
    serve_until,
    serving,
    status,
    whole,
    without_length,
)

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files["/file"] = BODY
        yield site


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits asked for, none of them waited; a proxy of this machine is passed by."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file"


def left_in(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def stop_after(size: int) -> module.Report:
    """A report that ends the download as Ctrl-C does, once so many bytes are here."""

    def report(here: int, _total: int | None) -> None:
        if here >= size:
            raise KeyboardInterrupt

    return report


def interrupt(url: str, target: Path, site: Site, end: int = 100_000) -> None:
    """Leave the part of a download that was stopped when the server paused at `end`."""
    kept = site.answers.get("/file", [])
    site.answers["/file"] = [serve_until(end)]
    with pytest.raises(KeyboardInterrupt):
        download(url, target, report=stop_after(end))
    site.answers["/file"] = kept
    site.requests.clear()


def test_whole_file_arrives_and_nothing_else_stays(site: Site, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    download(f"{site.url}/file", target, sha256=SHA256, report=lambda *bytes_: seen.append(bytes_))
    assert target.read_bytes() == BODY
    assert left_in(target) == ["file"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert seen == sorted(seen)


def test_a_file_that_is_there_is_not_asked_for(site: Site, target: Path) -> None:
    target.parent.mkdir()
    target.write_text("mine")
    download(f"{site.url}/file", target, sha256=SHA256)
    assert target.read_text() == "mine"
    assert site.requests == []


def test_broken_connection_goes_on_where_it_broke(site: Site, target: Path, waits: list[float]) -> None:
    site.answers["/file"] = [serve_until(100_000), serve_until(200_000)]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-", "bytes=200000-"]
    assert [headers["If-Range"] for _, headers in site.requests] == [None, etag(BODY), etag(BODY)]
    assert waits == [1.0, 1.0]  # each attempt brought something: none counts against the next


def test_next_call_goes_on_where_the_last_was_stopped(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    assert not target.exists()
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == ["bytes=100000-"]
    assert left_in(target) == ["file"]


def test_file_changed_on_the_server_is_not_mixed_with_the_part(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.files["/file"] = other = BODY[::-1]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == other


def test_part_of_another_url_is_not_gone_on_with(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.files["/other"] = BODY[::-1]
    download(f"{site.url}/other", target)
    assert target.read_bytes() == BODY[::-1]
    assert site.ranges() == [None]


def test_another_mirror_goes_on_with_the_part_where_a_checksum_tells(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.files["/mirror"] = BODY
    download(f"{site.url}/mirror", target, sha256=SHA256)
    assert target.read_bytes() == BODY
    assert site.ranges() == ["bytes=100000-"]
    assert site.requests[0][1]["If-Range"] is None


def test_without_version_and_checksum_it_starts_over(site: Site, target: Path) -> None:
    site.answers["/file"] = [serve_until(100_000, validators=False)]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None, None]


def test_weak_etag_does_not_vouch_for_equal_bytes(site: Site, target: Path) -> None:
    site.answers["/file"] = [
        claiming(len(BODY) + 1, ETag='W/"1"', Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
    ]
    download(f"{site.url}/file", target)
    assert site.requests[1][1]["If-Range"] == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_server_that_ignores_ranges_starts_over_cleanly(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.answers["/file"] = [whole]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == ["bytes=100000-"]


def test_complete_part_is_taken_when_the_server_says_there_is_no_more(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site, end=len(BODY))
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={len(BODY)}-"]


def test_complete_part_of_known_size_needs_no_server(target: Path) -> None:
    target.parent.mkdir()
    target.with_name("file.part").write_bytes(BODY)
    download("http://127.0.0.1:1/file", target, sha256=SHA256, size=len(BODY))
    assert target.read_bytes() == BODY


def test_part_longer_than_the_file_is_thrown_away(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site, end=len(BODY))
    with target.with_name("file.part").open("ab") as part:
        part.write(b"more")
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={len(BODY) + 4}-", None]


@pytest.mark.parametrize("content_range", ["bytes 5-9/300000", "bytes */300000", "garbage", ""])
def test_rest_from_another_place_is_thrown_away(site: Site, target: Path, content_range: str) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.answers["/file"] = [claiming(len(BODY), 206, Content_Range=content_range)]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY


def test_damaged_version_file_only_costs_the_part(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    target.with_name("file.part.json").write_text("[]")
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None]


@pytest.mark.parametrize("code", [500, 502, 503, 408, 429])
def test_busy_server_is_asked_again(site: Site, target: Path, code: int, waits: list[float]) -> None:
    site.answers["/file"] = [status(code), status(code)]
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert waits == [1.0, 2.0]


def test_it_gives_up_on_a_server_that_stays_broken(site: Site, target: Path, waits: list[float]) -> None:
    site.answers["/file"], site.forever = [status(500)], True
    with pytest.raises(
        DownloadError, match=rf"{site.url}/file: HTTP 500 .* 6 times in a row; try again later"
    ):
        download(f"{site.url}/file", target)
    assert waits == list(module.BACKOFF_SECONDS)
    assert not target.exists()


def test_ever_breaking_server_without_ranges_is_given_up(site: Site, target: Path) -> None:
    site.answers["/file"], site.forever = [claiming(len(BODY) + 1)], True
    with pytest.raises(DownloadError, match="ended after 300000 of 300001 bytes"):
        download(f"{site.url}/file", target)
    assert len(site.requests) == 6  # no attempt after the first had more than that
    assert not target.exists()


def test_attempts_that_bring_less_and_less_again_do_not_go_on_for_ever(site: Site, target: Path) -> None:
    ends = [200_000, 100_000, 150_000] * 4
    site.answers["/file"] = [serve_until(end, validators=False) for end in ends]
    with pytest.raises(DownloadError, match="6 times in a row"):
        download(f"{site.url}/file", target)
    assert len(site.requests) == 6


def test_unreachable_server_is_said(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match=rf"{url}: no connection \(.*refused\), 6 times"):
            download(url, target)


def test_silent_server_times_out(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_module, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.0,))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="timed out"):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/file", target)


def test_what_came_before_the_server_fell_silent_is_kept(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_module, "TIMEOUT_SECONDS", 0.1)
    with pausing_after(100_000) as pause:
        site.answers["/file"] = [pause]
        download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-"]


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_refusal_is_not_asked_again(site: Site, target: Path, code: int) -> None:
    site.answers["/file"] = [status(code)]
    with pytest.raises(DownloadError, match=rf"{site.url}/file: HTTP {code} .*; check the URL"):
        download(f"{site.url}/file", target)
    assert len(site.requests) == 1


def test_answer_without_content_is_refused(site: Site, target: Path) -> None:
    site.answers["/file"] = [status(204)]
    with pytest.raises(DownloadError, match="HTTP 204"):
        download(f"{site.url}/file", target)


def test_wrong_bytes_are_discarded_and_both_checksums_said(site: Site, target: Path) -> None:
    site.files["/file"] = wrong = BODY[::-1]
    expected = (
        rf"its sha256 is {hashlib.sha256(wrong).hexdigest()}, expected {SHA256}; the bytes were discarded"
    )
    with pytest.raises(DownloadError, match=expected):
        download(f"{site.url}/file", target, sha256=SHA256)
    assert left_in(target) == ["file.lock"]
    site.files["/file"] = BODY
    download(f"{site.url}/file", target, sha256=SHA256)
    assert target.read_bytes() == BODY


def test_part_damaged_on_the_disk_is_noticed(site: Site, target: Path) -> None:
    interrupt(f"{site.url}/file", target, site)
    part = target.with_name("file.part")
    part.write_bytes(bytes(100_000))
    with pytest.raises(DownloadError, match="its sha256 is"):
        download(f"{site.url}/file", target, sha256=SHA256)
    assert not part.exists()


def test_other_size_is_refused_before_its_bytes_are_fetched(site: Site, target: Path) -> None:
    with pytest.raises(DownloadError, match="the server has 300000 bytes, not 299999; name another source"):
        download(f"{site.url}/file", target, size=299_999)
    assert left_in(target) == ["file.lock"]


def test_server_that_claims_less_than_it_has_is_caught_by_the_checksum(site: Site, target: Path) -> None:
    site.answers["/file"], site.forever = [claiming(1000)], True
    with pytest.raises(DownloadError, match="its sha256 is"):
        download(f"{site.url}/file", target, sha256=SHA256)


def test_unannounced_length_is_taken_as_it_comes(site: Site, target: Path) -> None:
    site.answers["/file"] = [without_length]
    download(f"{site.url}/file", target, size=len(BODY))
    assert target.read_bytes() == BODY


def test_unannounced_excess_ends_at_the_known_size(site: Site, target: Path) -> None:
    site.answers["/file"] = [without_length]
    seen: list[int] = []
    with pytest.raises(DownloadError, match="more than the 1000 bytes expected"):
        download(f"{site.url}/file", target, size=1000, report=lambda here, _total: seen.append(here))
    assert max(seen) <= 1000
    assert left_in(target) == ["file.lock"]


def test_unannounced_end_before_the_known_size_is_a_break(site: Site, target: Path) -> None:
    site.answers["/file"], site.forever = [without_length], True
    with pytest.raises(DownloadError, match="ended after 300000 of 300001 bytes"):
        download(f"{site.url}/file", target, size=300_001)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_within_http_is_followed_with_its_range(site: Site, target: Path, code: int) -> None:
    interrupt(f"{site.url}/file", target, site)
    site.answers["/old"] = [serve_until(100_000), status(code, Location="/file")]
    site.files["/old"] = BODY
    target.with_name("file.part").unlink()
    download(f"{site.url}/old", target)
    assert target.read_bytes() == BODY
    assert site.requests[-1][0] == "/file"
    assert site.ranges()[-2:] == ["bytes=100000-"] * 2


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:,x"])
def test_redirect_to_another_scheme_is_not_followed(site: Site, target: Path, location: str) -> None:
    site.answers["/file"] = [status(302, Location=location)]
    with pytest.raises(DownloadError, match=f"HTTP 302 .*{location}"):
        download(f"{site.url}/file", target)
    assert left_in(target) == ["file.lock"]


def test_redirect_from_https_to_http_is_not_followed() -> None:
    with pytest.raises(HTTPError, match="redirection to http://b/ is not followed"):
        url_module._Redirects().redirect_request(Request("https://a/"), None, 302, "Found", {}, "http://b/")
    followed = url_module._Redirects().redirect_request(Request("http://a/"), None, 302, "", {}, "https://b/")
    assert followed is not None
    assert followed.full_url == "https://b/"


def test_redirect_loop_ends(site: Site, target: Path) -> None:
    site.answers["/file"], site.forever = [status(302, Location="/file")], True
    with pytest.raises(DownloadError, match="infinite loop"):
        download(f"{site.url}/file", target)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/file",
        "file",
        "",
        "data:,x",
        "http:///file",
        "http://host:port/",
        "http://[::1/",
        "http://h:99999/",
    ],
)
def test_what_is_no_url_of_ours_is_refused_at_once(url: str, target: Path, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match="; correct it"):
        download(url, target)
    assert waits == []


def test_url_with_a_space_is_refused_at_once(site: Site, target: Path, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match="not a valid URL"):
        download(f"{site.url}/my file", target)
    assert waits == []


def test_file_url_is_copied_percent_signs_decoded(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "a b%.bin"
    source.write_bytes(BODY)
    download(source.as_uri(), target, sha256=SHA256)
    assert target.read_bytes() == source.read_bytes() == BODY


def test_file_url_starts_over_after_an_interruption(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(BODY)
    target.parent.mkdir()
    target.with_name("file.part").write_bytes(b"old")
    download(source.as_uri(), target, sha256=SHA256)
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    "url", ["file:///no/such/file", "file:///", "file://other-machine/file", "file:///a%00b"]
)
def test_unreadable_file_url_is_said_at_once(url: str, target: Path, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match=url):
        download(url, target)
    assert waits == []


def test_full_disk_is_named_and_the_part_stays(
    site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(DownloadError, match=f"no space left for {target}; free some and run again"):
            download(f"{site.url}/file", target)
    assert target.with_name("file.part").read_bytes() == BODY
    download(f"{site.url}/file", target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None, f"bytes={len(BODY)}-"]


def test_place_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DownloadError, match=r"cache/file cannot be written \(.*\); name a place that can be"):
        download(f"{site.url}/file", tmp_path / "cache" / "file")


def test_of_several_processes_one_downloads(site: Site, target: Path) -> None:
    script = f"from pathlib import Path; from ssd.download import download; import sys\n\
download({site.url + '/file'!r}, Path(sys.argv[1]), sha256={SHA256!r})\n\
assert Path(sys.argv[1]).stat().st_size == {len(BODY)}"
    command = [sys.executable, "-c", script, str(target)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0, 0]
    assert len(site.requests) == 1
    assert left_in(target) == ["file"]


def test_nothing_but_filelock_is_needed() -> None:
    script = "import sys; before = set(sys.modules); import ssd.download\n\
new = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n\
assert new == {'ssd', 'filelock'}, new"
    subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"],
        check=True,
        cwd=ROOT,
    )
