from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from pipeline.contract.drop_reasons import ClipProblem
from pipeline.errors import InputFormatError, StorageError
from pipeline.inspect.motion_file import stored_fields
from pipeline.settings.job_config import InputConfig, load_config
from pipeline.sources.clip import Part
from pipeline.sources.registry import SUFFIXES, cut_file, format_of, read_part
from pipeline.storage import Folder, StoredFile

Make = Callable[..., Any]


def test_format_of_suffix_and_configuration() -> None:
    formats = ["parquet", "parquet", "webdataset", "npz", "npy", "lmdb", "lmdb"]
    assert [format_of(f"d/a{suffix}") for suffix in SUFFIXES] == formats
    assert format_of("A.NPZ") == "npz"
    assert format_of("a.bin", "parquet") == "parquet"
    with pytest.raises(InputFormatError, match=r"a\.tar\.gz has no known suffix"):
        format_of("a.tar.gz")


@pytest.mark.parametrize("file_format", ["parquet", "webdataset", "npz", "npy"])
def test_read_part_of_a_vanished_file_is_storage_error(
    tmp_path: Path, make_corpus: Make, make_codec: Make, file_format: str
) -> None:
    with pytest.raises(StorageError, match="run the same command again"):
        list(read_part(Folder(str(tmp_path)), Part("", "a", file_format), make_corpus(), make_codec()))


def test_cut_file_of_a_vanished_file_is_storage_error(tmp_path: Path, make_corpus: Make) -> None:
    with pytest.raises(StorageError, match=r"cannot read a\.tar"):
        cut_file(Folder(str(tmp_path)), "", StoredFile("a.tar", 9, "v"), make_corpus(unit_bytes=1))


@pytest.mark.parametrize("file_format", ["parquet", "webdataset"])
def test_read_part_failing_disk_is_storage_error_and_no_bad_clip(
    tmp_path: Path, make_corpus: Make, make_codec: Make, monkeypatch: pytest.MonkeyPatch, file_format: str
) -> None:
    class FailingFile:
        closed = False

        def __enter__(self) -> FailingFile:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def seek(self, offset: int, whence: int = 0) -> int:
            return 5000 if whence else offset

        def tell(self) -> int:
            return 0

        def readable(self) -> bool:
            return True

        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, "open", lambda *_: FailingFile())
    with pytest.raises(StorageError, match="Input/output error"):
        list(read_part(Folder(str(tmp_path)), Part("", "a", file_format), make_corpus(), make_codec()))


def test_every_format_can_be_asked_for_read_and_looked_into(
    tmp_path: Path, make_corpus: Make, make_codec: Make
) -> None:
    """A format that stands in one place only is refused, or ends in an internal error."""
    asked = set(get_args(InputConfig.model_fields["format"].annotation)) - {"auto"}
    assert asked == set(SUFFIXES.values())
    for name in asked:
        (tmp_path / f"a.{name}").write_bytes(b"damaged")
        folder, part = Folder(str(tmp_path)), Part("", f"a.{name}", name)
        config = load_config(None, [f"input.format={name}"])
        assert all(isinstance(clip, ClipProblem) for clip in read_part(folder, part, make_corpus(), make_codec()))
        assert stored_fields(folder, part.path, config) == []
