"""Broken tars and samples inside them, each with the reason it must be dropped for."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import numpy as np
from bad_arrays import header, motion, npy

SPECIAL = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}


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
