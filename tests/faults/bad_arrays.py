"""Broken npz and npy files, each with the reason it must be dropped for; and the arrays that other formats hold too."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIMS = 4


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
