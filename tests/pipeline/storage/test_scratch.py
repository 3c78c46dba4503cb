from __future__ import annotations

import errno
import resource
import signal
import tempfile

import pytest

from pipeline.errors import OutputError
from pipeline.storage import Folder, Scratch


def test_scratch_gives_back_what_was_put_aside(tmp_path):
    scratch = Scratch()
    assert bytes(scratch.view()) == b""
    places = [scratch.append(data) for data in (b"one", b"", memoryview(b"three"))]
    assert places == [(0, 3), (3, 3), (3, 8)]
    assert [scratch.read(*place) for place in places] == [b"one", b"", b"three"]
    assert scratch.append(b"!") == (8, 9)  # behind the end, wherever was read last
    view = scratch.view()
    assert bytes(view) == b"onethree!"
    Folder(str(tmp_path)).publish("a", view)
    assert (tmp_path / "a").read_bytes() == b"onethree!"


def test_scratch_stays_as_long_as_a_view_of_it():
    def made():
        scratch = Scratch()
        scratch.append(b"x" * 10_000)
        return scratch.view()

    assert bytes(made()) == b"x" * 10_000


def test_a_full_temporary_folder_is_named_with_the_next_step():
    """The limit on a file's size stands for a full disk: a real write fails."""
    scratch = Scratch()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"temporary folder: File too large.*set TMPDIR") as caught:
            scratch.append(b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.exit_code == 74


def test_no_temporary_folder_is_named_with_the_next_step(monkeypatch):
    def fail():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(OutputError, match="No usable temporary directory"):
        Scratch()
