from __future__ import annotations

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
