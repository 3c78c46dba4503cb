"""Token rows -> one WebDataset tar shard, and back.

Knows no Ray, torch or storage. No clock, owner or machine stands in a header.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.contract.columns import ArrayColumn, array_columns, token_schema
from pipeline.contract.schema import AUDIO_ARRAYS
from pipeline.contract.specs import CodecSpec, CorpusSpec
from pipeline.dataset.plain_tar import plain_table
from pipeline.dataset.tar_members import BLOCK, ArrayMembers, Bytes, members_of, tar_of
from pipeline.errors import VerifyError
from pipeline.hashing import canonical_json

NAME_LENGTH = 64
"""Characters of a clip id that stand in a key; the hash behind them tells longer ones apart."""


def sample_key(clip_id: str, start_frame: int) -> str:
    """Return the key of a window: the clip id made safe, 8 hex digits of its hash, the start frame."""
    return _window_key(_clip_key(clip_id), start_frame)


def _window_key(clip_key: str, start_frame: int) -> str:
    return f"{clip_key}-{start_frame:08d}"


def _clip_key(clip_id: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[:NAME_LENGTH]
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}"


def shard_to_tar(tokens: pa.Table, codec: CodecSpec, corpus: CorpusSpec | None = None) -> bytearray:
    """Return a tar shard: the adjacent members of each window, in row order; what is no array stands in its JSON.

    Args:
        tokens: rows of `token_schema`.
        codec: gives the shapes.
        corpus: says what stands beside the bits; None: nothing.
    """
    fixed, audio = array_columns(codec, corpus), _audio_member(corpus)
    sounds = AUDIO_ARRAYS if audio else ()
    plain = tokens.drop_columns([array.name for array in fixed] + list(sounds))
    clip_key = lru_cache(maxsize=1)(_clip_key)  # windows of a clip stand together
    windows = zip(plain["clip_id"].to_pylist(), plain["start_frame"].to_pylist(), strict=True)
    keys = [_window_key(clip_key(clip_id), start) for clip_id, start in windows]
    columns: list[ArrayMembers | Sequence[bytes]] = [
        ArrayMembers(
            [f"{key}.{array.member}" for key in keys],
            _header_of(array),
            _values_of(tokens[array.name], array.num_bytes),
        )
        for array in fixed
    ]
    for name in sounds:
        contents = [_sound_to_member(sound, audio) for sound in tokens[name].to_pylist()]
        columns.append(members_of([f"{key}.{name}.{audio}" for key in keys], contents))
    columns.append(members_of([f"{key}.json" for key in keys], _json_contents(plain)))
    return tar_of(columns, len(keys))


def _json_contents(plain: pa.Table) -> list[bytes]:
    """Return the canonical JSON of each window's columns that are no arrays."""
    names = sorted(plain.column_names)
    template = "{" + ",".join(canonical_json(name).replace("%", "%%") + ":%s" for name in names) + "}"
    return [(template % row).encode() for row in zip(*(_json_values(plain[name]) for name in names), strict=True)]


def _json_values(column: pa.ChunkedArray) -> list[str]:
    """Return the canonical JSON of each value; of texts, which repeat, each is written once."""
    kind = column.type
    if pa.types.is_integer(kind) and not column.null_count:
        return [str(value) for value in column.to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        codes = column.combine_chunks() if pa.types.is_dictionary(kind) else column.combine_chunks().dictionary_encode()
        codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
        texts = [canonical_json(value) for value in codes.dictionary.to_pylist()]
        return ["null" if index is None else texts[index] for index in codes.indices.to_pylist()]
    return [canonical_json(value) for value in column.to_pylist()]


def _values_of(column: pa.ChunkedArray, num_bytes: int) -> Bytes:
    """Return the bytes of a column of arrays, (num_rows, num_bytes), without a copy where it is one chunk."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[
            chunk.offset * num_bytes : (chunk.offset + len(chunk)) * num_bytes
        ].reshape(-1, num_bytes)
        for chunk in column.chunks
        if len(chunk)
    ]
    if len(chunks) == 1:
        return chunks[0]
    return np.concatenate([np.zeros((0, num_bytes), np.uint8), *chunks])


def window_bytes(codec: CodecSpec, corpus: CorpusSpec | None = None) -> int:
    """Return what a window takes in a tar while its JSON fits a block, without audio: headers and contents."""
    sizes = [len(_npy_header(array.dtype, array.shape)) + array.num_bytes for array in array_columns(codec, corpus)]
    return sum(BLOCK + size + -size % BLOCK for size in sizes) + 2 * BLOCK


def table_of_tar(data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str) -> pa.Table:
    """Return the token rows of a tar shard, as a Parquet shard of the same windows has them.

    Args:
        corpus: says what stands beside the bits; None: only bits are read, whatever else there is.
        name: of the shard, for messages.

    Raises:
        VerifyError: members of a window are missing, doubled, or do not stand together, or have another shape.
    """
    if not _audio_member(corpus):
        table = plain_table(data, codec, corpus, _header_of)
        if table is not None:
            return table
    return pa.Table.from_pylist(list(rows_of_tar(data, codec, corpus, name)), schema=token_schema(codec, corpus))


def rows_of_tar(data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str) -> Iterator[dict[str, object]]:
    """Yield every window of a tar shard: arrays and audio as bytes, the rest as its JSON has it.

    Raises:
        VerifyError: as for `table_of_tar`.
    """
    fixed = array_columns(codec, corpus)
    audio = _audio_member(corpus)
    sounds = {column: f"{column}.{audio}" for column in AUDIO_ARRAYS} if audio else {}
    wanted = [*(array.member for array in fixed), *sounds.values(), "json"]
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for key, members in _samples(tar):
            found = [suffix for suffix, _ in members if corpus is not None or suffix in wanted]
            if found != wanted:
                raise VerifyError(f"{name}: wanted members {wanted} of {key} together, found {found}")
            where, contents = f"{name}: {key}", dict(members)
            row = json.loads(contents["json"])
            if not isinstance(row, dict):
                raise VerifyError(f"{where}.json holds no fields, found {type(row).__name__}")
            for array in fixed:
                content, header = contents[array.member], _header_of(array)
                if len(content) != len(header) + array.num_bytes or not content.startswith(header):
                    raise VerifyError(f"{where} holds arrays of another shape or type than the codec's")
                row[array.name] = content[len(header) :]
            for column, member in sounds.items():
                row[column] = _sound_of_member(contents[member], audio, f"{where}.{member}")
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


def _header_of(array: ArrayColumn) -> bytes:
    """Return what stands before the bytes of a window's array."""
    return _npy_header(array.dtype, array.shape)


@lru_cache(maxsize=64)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's bytes in a .npy file."""
    sink = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue()
