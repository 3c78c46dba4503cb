"""Token rows -> one WebDataset tar shard, and back.

Knows no Ray, torch or storage. No clock, owner or machine stands in a header.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import CodecSpec, CorpusSpec, canonical_json
from pipeline.errors import VerifyError
from pipeline.schema import AUDIO_ARRAYS, WINDOW_NUMBERS, ArrayColumn, array_columns, token_schema

NAME_LENGTH = 64
"""Characters of a clip id that stand in a key; the hash behind them tells longer ones apart."""


def sample_key(clip_id: str, start_frame: int) -> str:
    """Return the key of a window: the clip id made safe, 8 hex digits of its hash, the start frame."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", clip_id)[:NAME_LENGTH]
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}-{start_frame:08d}"


def sample_edges(
    rows: Sequence[Mapping[str, Any]], windows_per_sample: int, corpus: CorpusSpec | None = None
) -> Iterator[tuple[int, int]]:
    """Yield first and past-the-last row of each sample: so many windows of a clip, or those left over at its end.

    A step in a clip beyond the window rule's stride is a gap that a filter left; it ends a sample too.

    Args:
        rows: of a shard, in order, with `clip_id` and `start_frame`.
        corpus: has the window rule; None: gaps are not known.
    """
    begin = 0
    for row in range(1, len(rows) + 1):
        if row == len(rows) or row - begin == windows_per_sample or not _follows(rows[row], rows[row - 1], corpus):
            yield begin, row
            begin = row


def _follows(row: Mapping[str, Any], before: Mapping[str, Any], corpus: CorpusSpec | None) -> bool:
    """Return whether a window is the next one of the same clip."""
    if row["clip_id"] != before["clip_id"]:
        return False
    return corpus is None or row["start_frame"] - before["start_frame"] <= corpus.window.stride


def shard_to_tar(
    tokens: pa.Table, codec: CodecSpec, corpus: CorpusSpec | None = None, windows_per_sample: int = 1
) -> bytes:
    """Return a tar shard: the adjacent members of each sample, in row order; what is no array stands in its JSON.

    Above one window a sample, arrays have an axis of windows before their own, the JSON has lists of `WINDOW_NUMBERS`,
    and each window's sound is a member of its own. One window a sample has none of that.

    Args:
        tokens: rows of `token_schema`; unshuffled where samples hold several windows.
        codec: gives the shapes.
        corpus: says what stands beside the bits; None: nothing.
        windows_per_sample: consecutive windows of a clip; at its end, at that of the shard, and before windows that a
            filter left out, a sample holds fewer.
    """
    sink = io.BytesIO()
    fixed = array_columns(codec, corpus)
    arrays = [(array, tokens[array.name].to_pylist()) for array in fixed]
    audio = _audio_member(corpus)
    sounds = [(name, tokens[name].to_pylist()) for name in AUDIO_ARRAYS] if audio else []
    rows = tokens.drop_columns([array.name for array in fixed] + [name for name, _ in sounds]).to_pylist()
    for begin, end in sample_edges(rows, windows_per_sample, corpus):
        fields = rows[begin]
        key = sample_key(fields["clip_id"], fields["start_frame"])
        count = end - begin if windows_per_sample > 1 else None
        for array, values in arrays:
            _add(sink, f"{key}.{array.member}", _header_of(array, count) + b"".join(values[begin:end]))
        for name, values in sounds:
            for member, sound in zip(_sound_members(name, audio, count), values[begin:end], strict=True):
                _add(sink, f"{key}.{member}", _sound_to_member(sound, audio))
        if count is not None:
            lists = {name: [row[name] for row in rows[begin:end]] for name in WINDOW_NUMBERS if name in fields}
            fields = fields | lists
        _add(sink, f"{key}.json", canonical_json(fields).encode())
    sink.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    return sink.getvalue()


def window_bytes(codec: CodecSpec, corpus: CorpusSpec | None = None) -> int:
    """Return what a window takes in a tar while its JSON fits a block, without audio: headers and contents."""
    sizes = [len(_npy_header(array.dtype, array.shape)) + array.num_bytes for array in array_columns(codec, corpus)]
    return sum(tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE for size in sizes) + 2 * tarfile.BLOCKSIZE


def table_of_tar(
    data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str, windows_per_sample: int | None = None
) -> pa.Table:
    """Return the token rows of a tar shard, as a Parquet shard of the same windows has them.

    Args:
        corpus: says what stands beside the bits; None: only bits are read, whatever else there is.
        name: of the shard, for messages.
        windows_per_sample: that samples have to hold where a clip has so many left; None: whatever they hold.

    Raises:
        VerifyError: members of a sample are missing, doubled, or do not stand together, or have another shape; or
            samples hold other windows together.
    """
    samples = list(samples_of_tar(data, codec, corpus, name))
    rows = [row for sample in samples for row in sample.rows]
    if windows_per_sample is not None:
        edges = sample_edges(rows, windows_per_sample, corpus)
        wanted = [(end - begin, windows_per_sample > 1) for begin, end in edges]
        if wanted != [(len(sample.rows), sample.is_grouped) for sample in samples]:
            raise VerifyError(
                f"{name}: its {len(samples)} samples do not hold {windows_per_sample} windows of a clip each, as"
                " export.windows_per_sample says: export again"
            )
    return pa.Table.from_pylist(rows, schema=token_schema(codec, corpus))


@dataclass(frozen=True)
class Sample:
    """Neighbouring members of one key in a tar shard; built by `samples_of_tar`."""

    rows: Sequence[dict[str, object]]
    """Its windows: arrays and audio as bytes, the rest as its JSON has it."""
    is_grouped: bool
    """Whether its arrays have an axis of windows, be it of one."""


def samples_of_tar(data: bytes, codec: CodecSpec, corpus: CorpusSpec | None, name: str) -> Iterator[Sample]:
    """Yield every sample of a tar shard.

    Raises:
        VerifyError: as for `table_of_tar`.
    """
    fixed = array_columns(codec, corpus)
    audio = _audio_member(corpus)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for key, members in _samples(tar):
            where = f"{name}: {key}"
            contents = dict(members)
            fields, count = _fields_of(contents.get("json", b"{}"), where)
            rows = [_row_of(fields, number) for number in range(count or 1)]
            sounds = {column: _sound_members(column, audio, count) for column in AUDIO_ARRAYS} if audio else {}
            wanted = [*(array.member for array in fixed), *(member for of in sounds.values() for member in of), "json"]
            found = [suffix for suffix, _ in members if corpus is not None or suffix in wanted]
            if found != wanted:
                raise VerifyError(f"{name}: wanted members {wanted} of {key} together, found {found}")
            for array in fixed:
                content, header = contents[array.member], _header_of(array, count)
                if len(content) != len(header) + len(rows) * array.num_bytes or not content.startswith(header):
                    raise VerifyError(f"{where} holds arrays of another shape or type than the codec's")
                for number, row in enumerate(rows):
                    begin = len(header) + number * array.num_bytes
                    row[array.name] = content[begin : begin + array.num_bytes]
            for column, of_column in sounds.items():
                for row, member in zip(rows, of_column, strict=True):
                    row[column] = _sound_of_member(contents[member], audio, f"{where}.{member}")
            yield Sample(rows, count is not None)


def _fields_of(content: bytes, where: str) -> tuple[dict[str, Any], int | None]:
    """Return a sample's JSON and its number of windows, None where it is one that is not grouped."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise VerifyError(f"{where}.json holds no fields, found {type(fields).__name__}")
    starts = fields.get("start_frame")
    if not isinstance(starts, list):
        return fields, None
    lists = [fields[name] for name in WINDOW_NUMBERS if name in fields]
    if not starts or not all(isinstance(values, list) and len(values) == len(starts) for values in lists):
        raise VerifyError(f"{where}.json: wanted lists of one value a window in each of {', '.join(WINDOW_NUMBERS)}")
    return fields, len(starts)


def _row_of(fields: dict[str, Any], number: int) -> dict[str, object]:
    """Return what a sample's JSON says of one of its windows."""
    is_grouped = isinstance(fields.get("start_frame"), list)
    return {name: value[number] if is_grouped and name in WINDOW_NUMBERS else value for name, value in fields.items()}


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


def _sound_members(name: str, audio: str, count: int | None) -> list[str]:
    """Return the members with a column's sound, numbered where a sample has a count of windows."""
    if count is None:
        return [f"{name}.{audio}"]
    return [f"{name}.{number}.{audio}" for number in range(count)]


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


def _header_of(array: ArrayColumn, count: int | None) -> bytes:
    """Return what stands before the bytes of a sample's array, with an axis of windows where there is a count."""
    return _npy_header(array.dtype, array.shape if count is None else (count, *array.shape))


@lru_cache(maxsize=64)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what stands before an array's bytes in a .npy file."""
    sink = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue()
