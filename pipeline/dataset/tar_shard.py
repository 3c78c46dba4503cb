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

from pipeline.contract.columns import ArrayColumn, array_columns, token_schema
from pipeline.contract.schema import AUDIO_ARRAYS, WINDOW_NUMBERS
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
) -> bytearray:
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
    fixed, audio = array_columns(codec, corpus), _audio_member(corpus)
    sounds = AUDIO_ARRAYS if audio else ()
    plain = tokens.drop_columns([array.name for array in fixed] + list(sounds))
    clip_ids, starts = plain["clip_id"].to_pylist(), plain["start_frame"].to_pylist()
    is_grouped = windows_per_sample > 1
    edges = [(row, row + 1) for row in range(tokens.num_rows)]
    if is_grouped:
        edges = list(sample_edges(plain.select(["clip_id", "start_frame"]).to_pylist(), windows_per_sample, corpus))
    clip_key = lru_cache(maxsize=1)(_clip_key)  # windows of a clip stand together
    keys = [_window_key(clip_key(clip_ids[begin]), starts[begin]) for begin, _ in edges]
    columns: list[ArrayMembers | Sequence[bytes]] = []
    for array in fixed:
        names = [f"{key}.{array.member}" for key in keys]
        values = _values_of(tokens[array.name], array.num_bytes)
        if is_grouped:
            contents = [_header_of(array, end - begin) + values[begin:end].tobytes() for begin, end in edges]
            columns.append(members_of(names, contents))
        else:
            columns.append(ArrayMembers(names, _header_of(array, None), values))
    for name in sounds:
        columns.append(_sound_column(tokens[name].to_pylist(), name, audio, keys, edges if is_grouped else None))
    columns.append(members_of([f"{key}.json" for key in keys], _json_contents(plain, edges, is_grouped)))
    return tar_of(columns, len(keys))


def _sound_column(
    values: Sequence[bytes], name: str, audio: str, keys: Sequence[str], edges: Sequence[tuple[int, int]] | None
) -> list[bytes]:
    """Return the members with the sound of each sample, joined.

    Args:
        edges: first and past-the-last row of each sample of several windows; None: each has one.
    """
    column: list[bytes] = []
    for number, key in enumerate(keys):
        begin, end = (number, number + 1) if edges is None else edges[number]
        names = [f"{key}.{member}" for member in _sound_members(name, audio, None if edges is None else end - begin)]
        column.append(b"".join(members_of(names, [_sound_to_member(sound, audio) for sound in values[begin:end]])))
    return column


def _json_contents(plain: pa.Table, edges: Sequence[tuple[int, int]], is_grouped: bool) -> list[bytes]:
    """Return the canonical JSON of each sample's columns that are no arrays; lists of numbers where it is grouped."""
    texts: list[list[str]] = []
    for name in sorted(plain.column_names):
        of_rows = _json_values(plain[name])
        if is_grouped and name in WINDOW_NUMBERS:
            texts.append([f"[{','.join(of_rows[begin:end])}]" for begin, end in edges])
        else:
            texts.append([of_rows[begin] for begin, _ in edges])
    names = (canonical_json(name).replace("%", "%%") for name in sorted(plain.column_names))
    template = "{" + ",".join(f"{name}:%s" for name in names) + "}"
    return [(template % values).encode() for values in zip(*texts, strict=True)]


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
    if windows_per_sample in (None, 1) and not _audio_member(corpus):
        table = plain_table(data, codec, corpus, lambda array: _header_of(array, None))
        if table is not None:
            return table
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
