from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.settings.job_config import InputConfig
from pipeline.sources.fields import carried_kinds, fields_of
from pipeline.sources.registry import open_readable
from pipeline.storage import Folder

Make = Callable[..., Any]


def write_npz(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, motion=np.zeros((6, 4), np.float32), **arrays)


def write_tar(path: Path, *trees: dict[str, Any], members: tuple[str, ...] = ()) -> None:
    with tarfile.open(path, "w") as tar:
        for index, tree in enumerate(trees):
            data = {"motion.npy": b"", **dict.fromkeys(members, b""), "json": json.dumps(tree).encode()}
            for extension, content in data.items():
                info = tarfile.TarInfo(f"{index}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def kinds_of(folder: Path, *carry: str, audio: str | None = None) -> dict[str, str]:
    roots = open_readable([str(folder)], "auto", {})
    return carried_kinds(roots, InputConfig(carry=carry, audio={"field": audio}))


def test_fields_of_parquet(tmp_path: Path) -> None:
    columns = {
        "name": pa.array(["a"]).dictionary_encode(),
        "age": pa.array([1], pa.int8()),
        "score": pa.array([1.5], pa.float16()),
        "is_old": [True],
        "mood": pa.array([[0.5]], pa.list_(pa.float32(), 1)),
        "about": [{"speaker": "anna", "raw": b"x"}],
        "nothing": pa.nulls(1),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert fields_of(Folder(str(tmp_path)), "a.parquet", "parquet") == {
        "name": "string",
        "age": "int64",
        "score": "float64",
        "is_old": "bool",
        "mood": "list<float64>",
        "about": "unfit",
        "about.speaker": "string",
        "about.raw": "unfit",
        "nothing": None,
    }


def test_fields_of_npz_and_lmdb(tmp_path: Path) -> None:
    arrays = {
        "speaker": np.array("anna"),
        "age": np.array([3]),
        "mood": np.zeros(5000),
        "steps": np.zeros(3, np.uint8),
        "grid": np.zeros((3, 3)),
        "grid_of_one": np.zeros((1, 1)),
        "object": np.array([{}, {}], object),
    }
    write_npz(tmp_path / "a.npz", **arrays)
    wanted = {
        "motion": "unfit",
        "speaker": "string",
        "age": "int64",
        "mood": "list<float64>",
        "steps": "list<int64>",
        "grid": "unfit",
        "grid_of_one": "float64",
        "object": "unfit",
    }
    folder = Folder(str(tmp_path))
    assert fields_of(folder, "a.npz", "npz") == wanted | {"grid_of_one": "unfit"}
    with lmdb.open(str(tmp_path), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        writing.put(b"a", (tmp_path / "a.npz").read_bytes())
        writing.put(b"b", b"damaged")
    assert fields_of(folder, "data.mdb", "lmdb") == wanted | {"grid_of_one": "unfit"}


def test_fields_of_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"speaker": None}, {"speaker": "anna", "x": {}}, members=("pose.npy", "voice.wav"))
    assert fields_of(Folder(str(tmp_path)), "a.tar", "webdataset") == {
        "motion": "unfit",
        "pose": "unfit",
        "voice": "unfit",
        "speaker": "string",
        "x": "unfit",
    }


def test_fields_of_damaged_files_are_none(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for name, kind in (("a.parquet", "parquet"), ("a.tar", "webdataset"), ("a.npz", "npz"), ("data.mdb", "lmdb")):
        folder.publish(name, b"PK\x03\x04" + b"x" * 600)
        assert fields_of(folder, name, kind) == {}
    assert fields_of(folder, "a.npy", "npy") == {}


def test_carried_kinds_are_the_widest_of_the_first_files(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", age=np.array(3), key=np.array(7), mood=np.arange(3))
    write_npz(tmp_path / "b.npz", age=np.array(3.5), key=np.array("seven"), mood=np.zeros(2), late=np.array("x"))
    assert kinds_of(tmp_path, "mood", "age", "key", "late") == {
        "mood": "list<float64>",
        "age": "float64",
        "key": "string",
        "late": "string",
    }
    assert kinds_of(tmp_path) == {}


def test_a_field_that_only_a_late_file_has_is_found(tmp_path: Path) -> None:
    for index in range(40):
        write_npz(tmp_path / f"{index:02}.npz", **({"speaker": np.array(True)} if index == 37 else {}))
    assert kinds_of(tmp_path, "speaker") == {"speaker": "bool"}


@pytest.mark.parametrize(
    ("carry", "audio", "words"),
    [
        (
            ("speker",),
            None,
            "input.carry: the input has no field 'speker' in any of its files; did you mean 'speaker'",
        ),
        (("zzz",), None, "no field 'zzz' in any of its files; found: mixed, motion, speaker"),
        ((), "sound", "input.audio.field: the input has no field 'sound'"),
        (("motion",), None, "'motion' is no text, number, truth value or list of numbers"),
        (("mixed",), None, "'mixed' is of several kinds (bool, string): make it one"),
    ],
)
def test_fields_that_cannot_be_carried_are_refused(
    tmp_path: Path, carry: tuple[str, ...], audio: str | None, words: str
) -> None:
    write_npz(tmp_path / "a.npz", speaker=np.array("anna"), mixed=np.array("x"))
    write_npz(tmp_path / "b.npz", mixed=np.array(True))
    with pytest.raises(ConfigError) as caught:
        kinds_of(tmp_path, *carry, audio=audio)
    assert words in str(caught.value)


def test_every_input_must_have_the_field(tmp_path: Path) -> None:
    write_npz(tmp_path / "one" / "a.npz", speaker=np.array("anna"))
    write_npz(tmp_path / "two" / "a.npz")
    roots = open_readable([f"x={tmp_path / 'one'}", f"y={tmp_path / 'two'}"], "auto", {})
    with pytest.raises(ConfigError, match="input 'y' has no field 'speaker'"):
        carried_kinds(roots, InputConfig(carry=("speaker",)))


def test_no_more_than_so_many_files_are_looked_at(tmp_path: Path) -> None:
    for index in range(5):
        write_npz(tmp_path / f"{index}.npz", **({"speaker": np.array("anna")} if index > 2 else {}))
    roots = open_readable([str(tmp_path)], "auto", {})
    with pytest.raises(ConfigError, match="in any of its first 3 files"):
        carried_kinds(roots, InputConfig(carry=("speaker",)), max_files=3)
    assert carried_kinds(roots, InputConfig(carry=("speaker",)), max_files=4) == {"speaker": "string"}


def test_sound_of_a_tar_needs_no_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {}, members=("wav",))
    assert kinds_of(tmp_path, audio="audio") == {}


def test_sound_that_is_a_file_needs_the_extra_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    write_npz(tmp_path / "a.npz", audio=np.zeros(100), voice=np.array("a.wav"))
    assert kinds_of(tmp_path, audio="audio") == {}
    with pytest.raises(ConfigError, match=r"motion-tokens\[audio\]"):
        kinds_of(tmp_path, audio="voice")
    roots = open_readable([str(tmp_path)], "auto", {})
    with pytest.raises(ConfigError, match=r"motion-tokens\[audio\]"):
        carried_kinds(roots, InputConfig(audio={"field": "audio", "encoding": "flac"}))


def test_fields_on_s3(s3: Any) -> None:
    folder = Folder(s3.url("side/fields"), s3.options)
    sink = io.BytesIO()
    np.savez(sink, motion=np.zeros((6, 4)), speaker=np.array("anna"))
    folder.publish("a.npz", sink.getvalue())
    roots = open_readable([folder.url], "auto", s3.options)
    assert carried_kinds(roots, InputConfig(carry=("speaker",))) == {"speaker": "string"}
