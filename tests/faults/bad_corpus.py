"""Broken clips, files and folders of every format, each with the reason it must be dropped for, among good ones."""

from __future__ import annotations

import base64
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIMS = 4
NESTED = pa.list_(pa.list_(pa.float32()))


@dataclass(frozen=True)
class Bad:
    """A clip that must be dropped: where it stands, under which reason, and words that the detail must hold."""

    kind: str
    source: str
    where: str
    reason: str
    detail: str


@dataclass
class Corpus:
    """A folder of good and bad clips with the settings it is to be read under."""

    folder: Path
    settings: tuple[str, ...]
    bad: list[Bad] = field(default_factory=list)
    good: dict[str, int] = field(default_factory=dict)

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def file(self, name: str, data: bytes, reason: str, detail: str = "") -> None:
        """Write a file that is one bad clip, or bad as a whole."""
        self.write(name, data)
        self.bad.append(Bad(Path(name).stem, name, "", reason, detail))


def motion(frames: int = 12, dims: int = DIMS, dtype: str = "float32") -> np.ndarray:
    steps = np.random.default_rng(frames).normal(size=(frames, dims))
    return np.cumsum(steps, axis=0).astype(dtype)


def spoiled(value: float, dtype: str = "float32") -> np.ndarray:
    array = motion(dtype=dtype)
    array[7, 2] = value
    return array


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(data: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "motion.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr(name, data)
        archive.writestr("fps.npy", npy(25.0))
    return stream.getvalue()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz_bomb(num_bytes: int) -> bytes:
    """A small archive whose motion is as large as it says: zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("fps.npy", npy(25.0))
        with archive.open("motion.npy", "w", force_zip64=True) as member:
            member.write(header(f"({num_bytes // 16}, 4)"))
            for _ in range(num_bytes >> 20):
                member.write(bytes(1 << 20))
    return stream.getvalue()


def claiming(data: bytes, num_bytes: int) -> bytes:
    """The archive with another size stated for its first member, in its directory and beside the member."""
    changed = bytearray(data)
    for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        place = changed.index(mark) + at
        changed[place : place + 4] = struct.pack("<I", num_bytes)
    return bytes(changed)


def npz_files() -> Iterator[tuple[str, bytes, str, str]]:
    good = npz(motion=motion(), fps=25.0)
    packed = zipped(npy(motion(50)))
    encrypted = bytearray(good)
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    garbled = bytearray(packed)
    garbled[200:220] = bytes(20)
    yield "no bytes", b"", "unreadable", "no npz archive"
    yield "no zip", b"not a zip at all", "unreadable", "no npz archive"
    yield "cut", good[:-30], "truncated", "no npz archive"
    yield "garbled", bytes(garbled), "unreadable", "motion.npy"
    yield "encrypted", bytes(encrypted), "unreadable", "encrypted"
    yield "lzma", zipped(npy(motion()), zipfile.ZIP_LZMA), "unreadable", "numpy does not write"
    yield "bomb", npz_bomb(1 << 27), "unreadable", "promises 134217"
    yield "claims 4 GB", claiming(packed, 0xFFFFFF00), "unreadable", "promises 4294967040 bytes"
    yield "hides a bomb", claiming(npz_bomb(1 << 26), 200), "unreadable", "motion.npy"
    yield "absurd header", zipped(header("(1152921504606846976, 4)")), "truncated", "promises 18446744073709551616"
    yield "objects", npz(motion=np.array([{}, []], object), fps=25), "unreadable", "found object"
    yield "no motion", npz(pose=motion(), fps=25), "missing_field", "found: fps, pose"
    yield "five dims", npz(motion=motion(dims=5), fps=25), "wrong_dim", "wanted 4 dims, found 5"
    yield "one axis", npz(motion=motion().ravel(), fps=25), "wrong_dim", "(48,)"
    yield "three axes", npz(motion=motion().reshape(3, 4, 4), fps=25), "wrong_dim", "(3, 4, 4)"
    yield "whole numbers", npz(motion=motion(dtype="int32"), fps=25), "wrong_dtype", "int32"
    yield "complex", npz(motion=motion(dtype="complex64"), fps=25), "wrong_dtype", "complex64"
    yield "texts", npz(motion=np.array([["a"] * 4] * 9), fps=25), "wrong_dtype", "<U1"
    yield "nan", npz(motion=spoiled(np.nan), fps=25), "non_finite", "nan at frame 7, column 2"
    yield "infinity", npz(motion=spoiled(-np.inf), fps=25), "non_finite", "-inf at frame 7, column 2"
    yield "beyond float32", npz(motion=spoiled(1e300, "float64"), fps=25), "non_finite", "1e+300 at frame 7"
    yield "no frame", npz(motion=motion()[:0], fps=25), "too_short", "no frame"
    yield "four frames", npz(motion=motion(4), fps=25), "too_short", "4 frames"
    yield "no rate", npz(motion=motion()), "fps_missing", "no rate"
    yield "rate zero", npz(motion=motion(), fps=0), "fps_missing", "0 is no positive number"
    yield "rate nan", npz(motion=motion(), fps=np.nan), "fps_missing", "nan"
    yield "rate of words", npz(motion=motion(), fps="fast"), "fps_missing", "no positive number"
    yield "rate of each frame", npz(motion=motion(), fps=np.full(12, 25)), "fps_missing", "no positive number"
    yield "other rate", npz(motion=motion(), fps=30), "fps_mismatch", "found 30"
    yield "two ids", npz(motion=motion(), fps=25, clip_id=["a", "b"]), "bad_clip_id", "ndarray"
    yield "empty id", npz(motion=motion(), fps=25, clip_id=""), "bad_clip_id", "0 characters"
    yield "long id", npz(motion=motion(), fps=25, clip_id="x" * 1025), "bad_clip_id", "1025 characters"
    yield "id of two lines", npz(motion=motion(), fps=25, clip_id="a\nb"), "bad_clip_id", "control character"
    yield "id that is true", npz(motion=motion(), fps=25, clip_id=True), "bad_clip_id", "bool"
    yield "frozen", npz(motion=np.ones((40, 4), np.float32), fps=25), "frozen", "20 equal frames from frame 0 on"
    part = np.concatenate([motion(30), np.repeat(motion(1), 21, axis=0)])
    yield "frozen at its end", npz(motion=part, fps=25), "frozen", "from frame 30 on"
    yield "same id", npz(motion=motion(13), fps=25, clip_id="twice"), "duplicate_id", ""
    yield "same id again", npz(motion=motion(14), fps=25, clip_id="twice"), "duplicate_id", ""


def members(*items: tuple[str, bytes], tail: bool = True) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in items:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue() if tail else stream.getvalue()[: tar.offset - 1024]


def raw_header(name: str, num_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = num_bytes, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def good_sample(key: str, frames: int = 12) -> list[tuple[str, bytes]]:
    return [(f"{key}.npy", npy(motion(frames))), (f"{key}.json", b'{"fps": 25}')]


def tar_files() -> Iterator[tuple[str, bytes, str, str]]:
    """Tars that are bad from the first sample on."""
    good = members(*good_sample("a"))
    yield "no bytes", b"", "truncated", "empty file"
    yield "words", b"these are words" * 100, "unreadable", "byte 0"
    yield "gzip", b"\x1f\x8b\x08" + bytes(range(256)) * 8, "unreadable", "byte 0"
    yield "cut in motion", good[:600], "truncated", "a.npy"
    yield "member of 2 to the 60", raw_header("a.npy", 1 << 60), "truncated", "1152921504606846976"
    yield "name of 2 to the 60", raw_header("././@LongLink", 1 << 60, tarfile.GNUTYPE_LONGNAME), "unreadable", "claims"
    yield "header of 8 GB", raw_header("pax", 8 << 30, tarfile.XHDTYPE), "unreadable", "claims 8589934592 bytes"


def samples() -> Iterator[tuple[str, list[tuple[str, bytes]], str, str, str]]:
    """Kind, members, where, reason and detail of samples that are bad between good ones."""
    ok = npy(motion())
    yield "words", [("words.npy", b"words")], "member words.npy", "unreadable", "no npy array"
    yield "pickled", [("pickled.npy", npy(np.array([{}])))], "member pickled.npy", "unreadable", "found object"
    absurd = header("(1152921504606846976, 4)")
    yield "absurd", [("absurd.npy", absurd)], "member absurd.npy", "truncated", "promises 18446744073709551616"
    short = [("short.npy", ok[:-9]), ("short.json", b"{}")]
    yield "short", short, "member short.npy", "truncated", "the header promises 192 bytes"
    yield "alone", [("alone.json", b"{}")], "sample alone", "missing_field", "found: json"
    yield "open", [("open.npy", ok), ("open.json", b"{")], "member open.npy", "unreadable", ".json"
    latin = '{"name": "é"}'.encode("latin-1")
    yield "latin", [("latin.npy", ok), ("latin.json", latin)], "member latin.npy", "unreadable", ".json"
    deep = b"[" * 200_000 + b"]" * 200_000
    yield "deep", [("deep.npy", ok), ("deep.json", deep)], "member deep.npy", "unreadable", "recursion"
    huge = b'{"fps": 25, "x": [' + b"[]," * (3 << 20) + b"0]}"
    yield "huge", [("huge.npy", ok), ("huge.json", huge)], "member huge.npy", "unreadable", "at most 4194304 are read"
    digits = [("digits.npy", ok), ("digits.json", b'{"fps": ' + b"9" * 5000 + b"}")]
    yield "digits", digits, "member digits.npy", "unreadable", ".json"
    list_id = [("listed.npy", ok), ("listed.json", b'{"fps": 25, "clip_id": ["a"]}')]
    yield "listed", list_id, "member listed.npy", "bad_clip_id", "no text but list"
    lone = [("lone.npy", ok), ("lone.json", rb'{"fps": 25, "clip_id": "\ud800"}')]
    yield "lone", lone, "member lone.npy", "bad_clip_id", "not UTF-8"
    yield "rateless", [("rateless.npy", ok)], "member rateless.npy", "fps_missing", "no rate"
    doubled = [("doubled.npy", ok), ("doubled.npy", ok)]
    yield "doubled", doubled, "sample doubled", "unreadable", "2 members of 1 names"


def special_members() -> bytes:
    """Links, a device, a pipe and a sparse file, between two good samples."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in [*good_sample("tar-special-first"), *good_sample("tar-special-last")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            if name == "tar-special-first.json":
                for kind, type_ in SPECIAL.items():
                    special = tarfile.TarInfo(f"{kind}.npy")
                    special.type, special.linkname = type_, "/etc/passwd"
                    tar.addfile(special)
                sparse = bytearray(raw_header("sparse.npy", 0, tarfile.GNUTYPE_SPARSE))
                sparse[483:495] = b"00000001000\0"  # its size with the zeros
                sparse[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(sparse))[0]
                stream.write(sparse)
                tar.offset += len(sparse)
    return stream.getvalue()


SPECIAL = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}


def parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def rows(*motions: Any, kind: Any = NESTED, **columns: Sequence[Any]) -> pa.Table:
    return pa.table({"motion": pa.array(list(motions), kind), "fps": [25.0] * len(motions), **columns})


def parquet_bomb() -> bytes:
    """A row of 32 million zeros, in some hundred bytes."""
    return parquet(rows(np.zeros(32 << 20, np.float32), kind=pa.list_(pa.float32())))


def fixed_bomb() -> bytes:
    """A null frame that a forged schema calls a list of 2 to the 30 numbers."""
    stream = io.BytesIO()
    table = rows([None, None])
    forged = pa.schema([("motion", pa.list_(pa.list_(pa.float32(), 1 << 30))), ("fps", pa.float64())])
    with pq.ParquetWriter(stream, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        text = base64.b64encode(forged.serialize().to_pybytes()).decode()
        writer.add_key_value_metadata({"ARROW:schema": text})
    return stream.getvalue()


def parquet_files() -> Iterator[tuple[str, bytes, str, str, str]]:
    """Name, bytes, where, reason and detail of files that are bad as a whole or in their one row group."""
    good = parquet(rows(motion().tolist()))
    flat = pa.list_(pa.float32())
    yield "no bytes", b"", "", "unreadable", "no Parquet footer"
    yield "words", b"these are words" * 100, "", "unreadable", "no Parquet footer"
    yield "cut", good[:-9], "", "truncated", "no Parquet footer"
    yield "garbled footer", good[:-200] + b"\xff" * 190 + good[-10:], "", "unreadable", "footer"
    yield "no motion", parquet(pa.table({"pose": [[1.0]]})), "", "missing_field", "found: pose"
    yield "bomb", parquet_bomb(), "rows 0 to 0", "unreadable", "the row group promises 134217"
    yield "forged list", fixed_bomb(), "rows 0 to 0", "unreadable", "the row group promises"
    yield (
        "whole numbers",
        parquet(rows([[1, 2, 3, 4]], kind=pa.list_(pa.list_(pa.int32())))),
        "row 0",
        "wrong_dtype",
        "",
    )
    yield "words for motion", parquet(pa.table({"motion": ["wave"]})), "row 0", "wrong_dtype", "found string"
    yield "uneven flat list", parquet(rows([0.0] * 47, kind=flat)), "row 0", "wrong_dim", "a multiple of 4"
    pages = bytearray(parquet(rows(motion().tolist()), compression="zstd"))
    chunk = pq.ParquetFile(io.BytesIO(bytes(pages))).metadata.row_group(0).column(0)
    pages[chunk.data_page_offset : chunk.data_page_offset + 30] = b"\xff" * 30
    yield "garbled page", bytes(pages), "rows 0 to 0", "unreadable", "the row group is damaged"


def bad_rows() -> tuple[pa.Table, list[tuple[int, str, str]], dict[str, int]]:
    """Return a table, (row, reason, detail) of its bad rows, and its good clips."""
    ragged = motion().tolist()
    ragged[3] = ragged[3][:2]
    found: list[tuple[str | None, Any, float | None, str, str]] = [
        ("row-good-first", motion().tolist(), 25.0, "", ""),
        ("row-null", None, 25.0, "missing_field", "the motion is null"),
        ("row-ragged", ragged, 25.0, "wrong_dim", "frame 3 has 2 dims, frame 0 has 4"),
        ("row-wide", motion(dims=5).tolist(), 25.0, "wrong_dim", "found 5"),
        ("row-empty", [], 25.0, "too_short", "no frame"),
        ("row-short", motion(3).tolist(), 25.0, "too_short", "3 frames"),
        ("row-nan", spoiled(np.nan).tolist(), 25.0, "non_finite", "nan at frame 7"),
        ("row-hole", [[1.0, None, 2.0, 3.0]] * 9, 25.0, "non_finite", "nan at frame 0, column 1"),
        ("row-rateless", motion().tolist(), None, "fps_missing", "no rate"),
        ("row-fast", motion().tolist(), 60.0, "fps_mismatch", "found 60"),
        ("", motion().tolist(), 25.0, "bad_clip_id", "0 characters"),
        ("row\u0007bell", motion().tolist(), 25.0, "bad_clip_id", "control character"),
        ("x" * 2000, motion().tolist(), 25.0, "bad_clip_id", "2000 characters"),
        (None, motion(9).tolist(), 25.0, "", ""),
        ("row-good-last", motion().tolist(), 25.0, "", ""),
    ]
    table = pa.table(
        {
            "clip_id": [item[0] for item in found],
            "motion": pa.array([item[1] for item in found], NESTED),
            "fps": [item[2] for item in found],
        }
    )
    bad = [(row, item[3], item[4]) for row, item in enumerate(found) if item[3]]
    return table, bad, {"row-good-first": 12, "parquet/rows#13": 9, "row-good-last": 12}


def npy_files() -> Iterator[tuple[str, bytes, str, str]]:
    good = npy(motion())
    yield "no bytes", b"", "unreadable", "no npy array"
    yield "magic alone", good[:6], "unreadable", "no npy array"
    yield "version nine", b"\x93NUMPY\x09\x00" + good[8:], "unreadable", "npy version (9, 0)"
    yield "cut", good[:-1], "truncated", "the header promises 192 bytes"
    yield "cut in its header", good[:40], "unreadable", "no npy array"
    yield "nested header", header("(" * 3000), "unreadable", "no npy array"
    yield "absurd", header("(1152921504606846976, 4)"), "truncated", "promises 18446744073709551616 bytes"
    yield "absurd and empty", header("(0, 1152921504606846976)"), "too_short", "no frame"
    yield "negative", header("(-3, -4)") + bytes(48), "unreadable", ""
    yield "code for a shape", header("__import__('os').abort()") + bytes(48), "unreadable", "no npy array"
    yield "objects", npy(np.array([{}])), "unreadable", "found object"
    yield "records", npy(np.zeros(9, "<f4,<f4")), "wrong_dtype", "found [('f0', '<f4'), ('f1', '<f4')]"
    yield "endless dims", header("(3, 1152921504606846976)", "'V0'"), "unreadable", ""


def sparse_npy(path: Path) -> None:
    """A file of 5 GiB of zeros that takes no place on the disk, with a header that fits it."""
    head = header(f"({(5 << 30) // 16}, 4)")
    path.write_bytes(head)
    os.truncate(path, len(head) + (5 << 30))


def write_main(folder: Path) -> Corpus:
    """npz, tar and Parquet, good and bad."""
    corpus = Corpus(folder, ("input.max_frozen_frames=20",))
    for number, (kind, data, reason, detail) in enumerate(npz_files()):
        corpus.file(f"npz/{kind}.npz", data, reason, detail)
        corpus.write(f"npz/good {number}.npz", npz(motion=motion(5 + number), fps=25.0))
        corpus.good[f"npz/good {number}"] = 5 + number
    corpus.write("npz/folder.npz/inside.npz", npz(motion=motion(8), fps=25.0))
    corpus.good["npz/folder.npz/inside"] = 8
    (folder / "npz/broken link.npz").symlink_to("nowhere.npz")
    (folder / "npz/circle").symlink_to(folder, target_is_directory=True)
    corpus.write("npz/.hidden.npz", b"hidden")
    _write_tars(corpus)
    for kind, data, where, reason, detail in parquet_files():
        corpus.write(f"parquet/{kind}.parquet", data)
        corpus.bad.append(Bad(kind, f"parquet/{kind}.parquet", where, reason, detail))
    table, bad, good = bad_rows()
    corpus.write("parquet/rows.parquet", parquet(table, row_group_size=4))
    corpus.good.update(good)
    for row, reason, detail in bad:
        corpus.bad.append(Bad(f"row {row}", "parquet/rows.parquet", f"row {row}", reason, detail))
    return corpus


def _write_tars(corpus: Corpus) -> None:
    for kind, data, reason, detail in tar_files():
        corpus.file(f"tar/{kind}.tar", data, reason, detail)
    items, number = good_sample("first"), 0
    for number, (kind, found, where, reason, detail) in enumerate(samples()):
        items += [*found, *good_sample(f"good{number}", 6 + number)]
        corpus.good[f"tar/samples#good{number}"] = 6 + number
        corpus.bad.append(Bad(kind, "tar/samples.tar", where, reason, detail))
    corpus.good["tar/samples#first"] = 12
    corpus.write("tar/samples.tar", members(*items))
    corpus.write("tar/no end mark.tar", members(*good_sample("a"), *good_sample("b"), tail=False))
    corpus.bad.append(Bad("no end mark", "tar/no end mark.tar", "", "truncated", "end mark"))
    corpus.good["tar/no end mark#a"] = 12
    corpus.write("tar/special.tar", special_members())
    corpus.good.update({"tar/special#tar-special-first": 12, "tar/special#tar-special-last": 12})
    for kind in (*SPECIAL, "sparse"):
        detail = "stored sparse" if kind == "sparse" else "link or device"
        corpus.bad.append(Bad(kind, "tar/special.tar", f"sample {kind}", "unreadable", detail))


def write_npy(folder: Path) -> Corpus:
    """npy files, good and bad; one of them larger than a clip may be."""
    corpus = Corpus(folder, ("input.fps=25",))
    for number, (kind, data, reason, detail) in enumerate(npy_files()):
        corpus.file(f"{kind}.npy", data, reason, detail)
        corpus.write(f"good {number}.npy", npy(motion(6 + number, dtype="float64")))
        corpus.good[f"good {number}"] = 6 + number
    sparse_npy(folder / "endless.npy")
    corpus.bad.append(Bad("endless", "endless.npy", "", "unreadable", "more than 4294967296 bytes"))
    return corpus


def write_resampled(folder: Path) -> Corpus:
    """Rates that no conversion makes sense of, under `resample: linear`."""
    corpus = Corpus(folder, ("input.resample=linear",))
    for rate in (1e-9, 1e-300, 5e-324):
        corpus.file(f"{rate:g}.npz", npz(motion=motion(), fps=rate), "fps_mismatch", f"{rate:g} frames a second")
    corpus.file("1e300.npz", npz(motion=motion(), fps=1e300), "too_short", "1 frames")
    corpus.file("minus.npz", npz(motion=motion(), fps=-25.0), "fps_missing", "-25 is no positive number")
    corpus.write("good.npz", npz(motion=motion(40), fps=50.0))
    corpus.good["good"] = 20
    return corpus


def write_exploding(folder: Path) -> Corpus:
    """Values that the statistics of the codec (mean 0, deviation 1) rule out."""
    corpus = Corpus(folder, ())
    far = "20000 at frame 7, column 2 is 20000 deviations off, 10000 are allowed"
    corpus.file("far.npz", npz(motion=spoiled(20_000), fps=25), "exploding", far)
    corpus.file("edge.npz", npz(motion=spoiled(-3e38), fps=25), "exploding", "-3e+38 at frame 7, column 2")
    corpus.write("good.npz", npz(motion=spoiled(10_000), fps=25))
    corpus.good["good"] = 12
    return corpus


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "main": write_main,
    "npy": write_npy,
    "resampled": write_resampled,
    "exploding": write_exploding,
}
