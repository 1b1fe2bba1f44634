"""What is printed when nobody can read it."""

import errno
import os
import sys
from pathlib import Path
from typing import IO

import pytest

from ssd.console import RunConsole

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


def test_what_an_encoding_lacks_does_not_end_a_run(tmp_path: Path, monkeypatch):
    file = tmp_path / "out.txt"
    with file.open("w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with RunConsole(is_main=True) as console:
            console.say("300×300 → Größe")
    assert file.read_text() == "300?300 ? Gr??e\n"
