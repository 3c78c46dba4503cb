"""Members of a tar in bulk are those that tarfile writes, byte for byte; a tar of other bytes is not taken for one."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from pipeline.dataset.tar_members import END, ArrayMembers, headers_of, members_of, plain_members, tar_of

NAMES = ["a.json", "b-0123.prev.npy", "x" * 100, "c.this.npy"]
CONTENTS = [b"", b"1" * 511, b"2" * 512, b"3" * 70_000]


def by_tarfile(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % tarfile.BLOCKSIZE)


def test_members_of_gives_the_bytes_of_tarfile() -> None:
    wanted = [by_tarfile(name, content) for name, content in zip(NAMES, CONTENTS, strict=True)]
    assert members_of(NAMES, CONTENTS) == wanted


def test_members_of_nothing_is_nothing() -> None:
    assert members_of([], []) == []


@pytest.mark.parametrize("size", [0, 7, 8, 511, 512, 2**33 - 1])
def test_headers_of_states_any_size_that_a_header_holds(size: int) -> None:
    info = tarfile.TarInfo("n")
    info.size, info.mode = size, 0o644
    assert headers_of(["n"], np.array([size])).tobytes() == info.tobuf(tarfile.USTAR_FORMAT)


def test_headers_of_refuses_a_name_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="100 characters, found 101: y"):
        headers_of(["x", "y" * 101], np.array([1, 1]))


@pytest.mark.parametrize("texts", [[b"{}", b"{1}", b"{2}"], [b"{}", b"{}" * 600, b""]], ids=["alike", "of any size"])
def test_tar_of_puts_members_of_a_sample_together(texts: list[bytes]) -> None:
    values = np.arange(3 * 600, dtype=np.uint32).astype(np.uint8).reshape(3, 600)
    keys = ["a", "b", "c"]
    names = [f"{key}.npy" for key in keys]
    json = members_of([f"{key}.json" for key in keys], texts)
    wanted = b"".join(
        by_tarfile(name, b"head" + value.tobytes()) + text
        for name, value, text in zip(names, values, json, strict=True)
    )
    assert tar_of([ArrayMembers(names, b"head", values), json], 3) == wanted + END


def test_tar_of_no_samples_is_an_empty_tar() -> None:
    empty = tar_of([ArrayMembers([], b"head", np.zeros((0, 8), np.uint8)), []], 0)
    assert empty == END
    with tarfile.open(fileobj=io.BytesIO(empty)) as tar:
        assert tar.getmembers() == []


def test_plain_members_finds_what_tarfile_finds() -> None:
    data = b"".join(members_of(NAMES, CONTENTS)) + END
    found = plain_members(data)
    assert found is not None
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [(info.name, info.offset_data, info.size) for info in tar]
    assert list(zip(found.names, found.begins, found.sizes, strict=True)) == wanted


@pytest.mark.parametrize("at", [3, 101, 130, 150, 156, 257, 300, 400])
def test_plain_members_takes_no_other_header_for_its_own(at: int) -> None:
    data = bytearray(b"".join(members_of(NAMES, CONTENTS)) + END)
    data[at] ^= 1
    assert plain_members(bytes(data)) is None


@pytest.mark.parametrize("change", [lambda data: data[:-512], lambda data: data + END, lambda data: data[:-1500]])
def test_plain_members_takes_no_other_end_for_its_own(change) -> None:
    assert plain_members(change(b"".join(members_of(NAMES, CONTENTS)) + END)) is None


def test_plain_members_leaves_tars_of_others_alone() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("é.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    assert plain_members(sink.getvalue()) is None
