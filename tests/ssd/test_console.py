"""Console output when standard output is lost, in a terminal, and in run.log."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from ssd.console import RunConsole
from ssd.errors import UserError

pytestmark = pytest.mark.unit


def full_disk() -> IO[str]:
    return open("/dev/full", "w")


def closed_pipe() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


@pytest.mark.parametrize(("lost", "reason"), [(full_disk, errno.ENOSPC), (closed_pipe, errno.EPIPE)])
def test_a_run_goes_on_without_its_output(lost, reason: int, monkeypatch, capsys):
    with lost() as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with RunConsole(is_main=True) as console:
            console.say("one", "two" * 10_000)
            console.table("title", {"name": "value"})
    told = f"standard output is lost ({os.strerror(reason)}); going on without it\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("in_a_terminal", [False, True])
def test_run_log_has_what_was_said_once_over_all_starts_and_no_bar(
    in_a_terminal: bool, tmp_path: Path, monkeypatch, capsys
):
    if in_a_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    record = dict.fromkeys(("loss", "loss_localization", "loss_confidence", "data_wait"), 0.5)
    record |= {"learning_rate": 0.1, "images_per_second": 9.0, "epoch": 0}
    expected = []
    for start in ("one", "two"):
        with suppress(UserError), RunConsole(is_main=True) as console:
            console.say(f"checked {start}")
            console.copy_to(tmp_path / "run.log", f"command {start}", "commit")
            console.table("title [x]", {"name": start})
            console.start(0, 9)
            console.advance(1, 0)
            console.figures(1, record, 3.0)
            with console.counting(1, f"counted {start}") as count:
                count(1)
            raise UserError("\x1b[2J too few")
        expected += [f"command {start}", "commit", f"checked {start}", "title [x]", start, "step 1/9"]
        expected += [f"counted {start}", "error: �[2J too few"]
    lines = (tmp_path / "run.log").read_text().splitlines()
    told = [line for line in lines if not set(line) <= set("┌┐└┘─┬┴")]
    assert len(told) == len(expected)
    assert all(each in line for each, line in zip(expected, told, strict=True))
    assert "\x1b" not in "".join(lines)
    assert ("\x1b" in capsys.readouterr().out) == in_a_terminal


def test_a_run_goes_on_without_its_log(tmp_path: Path, capsys):
    with RunConsole(is_main=True) as console:
        (tmp_path / "run.log").symlink_to("/dev/full")
        console.copy_to(tmp_path / "run.log")
        console.say("one", "two")
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    assert captured.err == f"{tmp_path / 'run.log'} is lost (No space left on device); going on without it\n"


def test_what_an_encoding_lacks_does_not_end_a_run(tmp_path: Path, monkeypatch):
    file = tmp_path / "out.txt"
    with file.open("w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with RunConsole(is_main=True) as console:
            console.say("300×300 → Größe")
    assert file.read_text() == "300?300 ? Gr??e\n"
