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
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.config import CodecSpec, CorpusSpec, canonical_json
from pipeline.errors import VerifyError
from pipeline.schema import AUDIO_ARRAYS, array_columns, token_schema

NAME_LENGTH = 64
"""Characters of a clip id that stand in a key; the hash behind them tells longer ones apart."""


def sample_key(clip_id: str, start_frame: int) -> str:
    """Return the key of a window: the clip id made safe, 8 hex digits of its hash, the start frame."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[:NAME_LENGTH]
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}-{start_frame:08d}"


def shard_to_tar(tokens: pa.Table, codec: CodecSpec, corpus: CorpusSpec | None = None) -> bytes:
    """Return a tar shard: the adjacent members of each window, in row order; what is no array stands in its JSON.

    Args:
        tokens: rows of `token_schema`.
        codec: gives the shapes.
        corpus: says what stands beside the bits; None: nothing.
    """
    sink = io.BytesIO()
    fixed = array_columns(codec, corpus)
    members = [(array.member, tokens[array.name].to_pylist(), _npy_header(array.dtype, array.shape)) for array in fixed]
    audio = _audio_member(corpus)
    sounds = [(name, tokens[name].to_pylist()) for name in AUDIO_ARRAYS] if audio else []
    taken = [array.name for array in fixed] + [name for name, _ in sounds]
    for index, row in enumerate(tokens.drop_columns(taken).to_pylist()):
        key = sample_key(row["clip_id"], row["start_frame"])
        for member, values, header in members:
            _add(sink, f"{key}.{member}", header + values[index])
        for name, values in sounds:
            _add(sink, f"{key}.{name}.{audio}", _sound_to_member(values[index], audio))
        _add(sink, f"{key}.json", canonical_json(row).encode())
    sink.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    return sink.getvalue()


def window_bytes(codec: CodecSpec, corpus: CorpusSpec | None = None) -> int:
    """Return what a window takes in a tar while its JSON fits a block, without audio: headers and contents."""
    sizes = [len(_npy_header(array.dtype, array.shape)) + array.num_bytes for array in array_columns(codec, corpus)]
    return sum(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE for size in sizes) + 2 * tarfile.BLOCKSIZE


def table_of_tar(data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str) -> pa.Table:
    """Return the token rows of a tar shard, as a Parquet shard of the same windows has them.

    Args:
        corpus: says what stands beside the bits; None: only bits are read, whatever else there is.
        name: of the shard, for messages.

    Raises:
        VerifyError: members of a window are missing, doubled, or do not stand together, or have another shape.
    """
    schema = token_schema(codec, corpus)
    return pa.Table.from_pylist(list(rows_of_tar(data, codec, corpus, name)), schema=schema)


def rows_of_tar(data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str) -> Iterator[dict[str, object]]:
    """Yield every window of a tar shard as a row: arrays and audio as bytes, the rest as its JSON has it.

    Raises:
        VerifyError: as for `table_of_tar`.
    """
    fixed = {array.member: array for array in array_columns(codec, corpus)}
    headers = {member: _npy_header(array.dtype, array.shape) for member, array in fixed.items()}
    audio = _audio_member(corpus)
    sounds = {f"{column}.{audio}": column for column in AUDIO_ARRAYS} if audio else {}
    wanted = [*fixed, *sounds, "json"]
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for key, members in _samples(tar):
            found = [suffix for suffix, _ in members if corpus is not None or suffix in wanted]
            if found != wanted:
                raise VerifyError(f"{name}: wanted members {wanted} of {key} together, found {found}")
            row: dict[str, object] = {}
            for suffix, content in members:
                if suffix in fixed:
                    array, header = fixed[suffix], headers[suffix]
                    if len(content) != len(header) + array.num_bytes or not content.startswith(header):
                        raise VerifyError(f"{name}: {key} holds arrays of another shape or type than the codec's")
                    row[array.name] = content[len(header) :]
                elif suffix in sounds:
                    row[sounds[suffix]] = _sound_of_member(content, audio, f"{name}: {key}.{suffix}")
                elif suffix == "json":
                    row.update(json.loads(content))
            yield row


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield key and (suffix, content) of neighbours with one key; a sample ends behind its JSON."""
    key = ""
    members: list[tuple[str, bytes]] = []
    for info in tar:
        here, _, suffix = info.name.partition(".")
        if members and here != key:
            yield key, members
            members = []
        key = here
        file = tar.extractfile(info)
        members.append((suffix, file.read() if file else b""))
        if suffix == "json":
            yield key, members
            members = []
    if members:
        yield key, members


def _audio_member(corpus: CorpusSpec | None) -> str:
    """Return the suffix of cut audio, "" where there is none."""
    if corpus is None or corpus.audio is None or corpus.audio.mode != "cut":
        return ""
    return "flac" if corpus.audio.encoding == "flac" else "npy"


def _sound_to_member(samples: bytes, audio: str) -> bytes:
    return samples if audio == "flac" else _npy_header("<i2", (len(samples) // 2,)) + samples


def _sound_of_member(content: bytes, audio: str, where: str) -> bytes:
    if audio == "flac":
        return content
    begin = len(_npy_header("<i2", (0,)))
    samples = content[begin:]
    if content != _sound_to_member(samples, audio):
        raise VerifyError(f"{where} is no array of int16 samples")
    return samples


def _add(sink: io.BytesIO, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    sink.write(info.tobuf(tarfile.USTAR_FORMAT))
    sink.write(data)
    sink.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))


@lru_cache(maxsize=64)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's bytes in a .npy file."""
    sink = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue()
