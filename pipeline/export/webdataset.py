"""Token rows -> one WebDataset tar shard, and back.

Knows no Ray, torch or storage. No clock, owner or machine stands in a header.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.config import CodecSpec, canonical_json
from pipeline.errors import VerifyError

NAME_LENGTH = 64
"""Characters of a clip id that stand in a key; the hash behind them tells longer ones apart."""

MEMBERS = ("prev.npy", "this.npy", "json")


def sample_key(clip_id: str, start_frame: int) -> str:
    """Return the key of a window: the clip id made safe, 8 hex digits of its hash, the start frame."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[:NAME_LENGTH]
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}-{start_frame:08d}"


def shard_to_tar(tokens: pa.Table, codec: CodecSpec) -> bytes:
    """Return a tar shard: three adjacent members a window, in row order."""
    header = _npy_header(codec)
    sink = io.BytesIO()
    plain = tokens.drop_columns(["prev_bits", "this_bits"]).to_pylist()
    halves = zip(tokens["prev_bits"].to_pylist(), tokens["this_bits"].to_pylist(), strict=True)
    for row, (prev_bits, this_bits) in zip(plain, halves, strict=True):
        key = sample_key(row["clip_id"], row["start_frame"])
        _add(sink, f"{key}.prev.npy", header + prev_bits)
        _add(sink, f"{key}.this.npy", header + this_bits)
        _add(sink, f"{key}.json", canonical_json(row).encode())
    sink.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    return sink.getvalue()


def window_bytes(codec: CodecSpec) -> int:
    """Return what a window takes in a tar while its JSON fits a block: headers and contents of three members."""
    npy = len(_npy_header(codec)) + codec.half_bytes
    return 2 * (tarfile.BLOCKSIZE + npy + -npy % tarfile.BLOCKSIZE) + 2 * tarfile.BLOCKSIZE


def rows_of_tar(data: bytes, codec: CodecSpec, name: str) -> Iterator[tuple[dict[str, object], bytes, bytes]]:
    """Yield (plain columns, prev bits, this bits) of every window of a tar shard.

    Raises:
        VerifyError: members of a window are missing, doubled, or do not stand together.
    """
    header = _npy_header(codec)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = iter(tar)
        for first in members:
            key = first.name.split(".", 1)[0]
            group = [first, next(members, None), next(members, None)]
            wanted = [f"{key}.{suffix}" for suffix in MEMBERS]
            found = [member.name if member else "end of file" for member in group]
            if found != wanted:
                raise VerifyError(f"{name}: wanted members {wanted} together, found {found}")
            prev_npy, this_npy, text = (_read(tar, member) for member in group if member)
            wanted_bytes = len(header) + codec.half_bytes
            if any(len(npy) != wanted_bytes or not npy.startswith(header) for npy in (prev_npy, this_npy)):
                raise VerifyError(f"{name}: {key} holds arrays of another shape or type than the codec's")
            yield json.loads(text), prev_npy[len(header) :], this_npy[len(header) :]


def _add(sink: io.BytesIO, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    sink.write(info.tobuf(tarfile.USTAR_FORMAT))
    sink.write(data)
    sink.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return file.read() if file else b""


def _npy_header(codec: CodecSpec) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.zeros((codec.num_tokens, codec.code_dim // 8), np.uint8), version=(1, 0))
    return sink.getvalue()[: -codec.half_bytes]
