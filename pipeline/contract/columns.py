"""Columns that depend on the spec: bits and what is emitted, carried fields, audio; and the bytes of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.contract.schema import (
    CARRIED_TYPES,
    CUT_AUDIO_FIELDS,
    DRIFT_FIELD,
    PATH_FIELD,
    PLAIN_FIELDS,
    RATE_FIELD,
    REFERENCED_AUDIO_FIELDS,
)
from pipeline.contract.specs import CodecSpec, CorpusSpec, TokenSpec


@dataclass(frozen=True)
class ArrayColumn:
    """A column of arrays of one shape: fixed-size bytes, row-major and little-endian, in Parquet; a member in tars."""

    name: str
    member: str
    """What follows `<key>.` in a tar."""
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def array_columns(codec: CodecSpec, corpus: CorpusSpec | None = None) -> tuple[ArrayColumn, ...]:
    """Return the columns that hold arrays: bits, then what is emitted beside them.

    Args:
        codec: gives the shapes.
        corpus: says what is emitted; None: nothing.
    """
    half = (codec.num_tokens, codec.code_dim // 8)
    columns = [
        ArrayColumn("prev_bits", "prev.npy", "|u1", half),
        ArrayColumn("this_bits", "this.npy", "|u1", half),
    ]
    return (*columns, *emitted_columns(codec, corpus)) if corpus else tuple(columns)


def emitted_columns(codec: CodecSpec, corpus: CorpusSpec) -> tuple[ArrayColumn, ...]:
    """Return the columns that `emit` asks for, in order."""
    half = (codec.num_tokens, codec.code_dim // 8)
    columns: list[ArrayColumn] = []
    if "latent" in corpus.emit:
        columns.append(ArrayColumn("this_latent", "latent.npy", "<f2", (codec.window_frames, codec.code_dim)))
    if corpus.flips is not None:
        pairs = (corpus.flips.pairs, *half)
        columns.append(ArrayColumn("flip_targets", "flip_targets.npy", "|u1", pairs))
        columns.append(ArrayColumn("flip_bits", "flip_bits.npy", "|u1", pairs))
    if "decoded_prev" in corpus.emit:
        columns.append(ArrayColumn("decoded_prev_bits", "decoded_prev.npy", "|u1", half))
    return tuple(columns)


def token_schema(codec: CodecSpec, corpus: CorpusSpec | None = None) -> pa.Schema:
    """Return the columns of a token shard: those of every dataset, then emitted, carried and audio ones.

    Args:
        codec: gives the sizes.
        corpus: says what stands beside the bits; None: nothing.
    """
    columns = array_columns(codec, corpus)
    arrays = [pa.field(array.name, pa.binary(array.num_bytes), nullable=False) for array in columns]
    return pa.schema([*PLAIN_FIELDS, *arrays, *(side_fields(corpus) if corpus else ())])


def side_fields(corpus: CorpusSpec) -> list[pa.Field]:
    """Return the columns of a token shard that come from clips as they are: carried ones, then audio."""
    fields = _carried_fields(corpus)
    if corpus.audio is not None:
        fields.extend((*CUT_AUDIO_FIELDS, RATE_FIELD) if corpus.audio.mode == "cut" else REFERENCED_AUDIO_FIELDS)
    return fields


def clip_schema(corpus: CorpusSpec) -> pa.Schema:
    """Return what a block carries of each kept clip: carried columns, and the audio its windows are cut from.

    Cut audio is `audio`, raw little-endian int16 samples of the whole clip; `audio_drift_s` is for the account alone.
    """
    fields = _carried_fields(corpus)
    if corpus.audio is not None:
        is_cut = corpus.audio.mode == "cut"
        fields.extend(
            [pa.field("audio", pa.large_binary(), nullable=False) if is_cut else PATH_FIELD, RATE_FIELD, DRIFT_FIELD]
        )
    return pa.schema(fields)


def _carried_fields(corpus: CorpusSpec) -> list[pa.Field]:
    return [pa.field(column.name, CARRIED_TYPES[column.kind]) for column in corpus.carry]


OPEN_RATE_HZ = 48_000
"""Samples a second that are reckoned with where the rate of audio is left to the files."""


def token_row_bytes(spec: TokenSpec) -> int:
    """Return the bytes of a window's row of tokens.

    Arrays and cut audio count, flac as if it were plain samples; carried values do not, their size is unknown.
    """
    codec, audio = spec.codec, spec.corpus.audio
    row_bytes = sum(array.num_bytes for array in array_columns(codec, spec.corpus))
    if audio is not None and audio.mode == "cut":
        row_bytes += 2 * 2 * round(codec.window_frames * (audio.rate_hz or OPEN_RATE_HZ) / codec.fps)
    return row_bytes


def motion_bytes_a_window(spec: TokenSpec) -> float:
    """Return the bytes of float32 motion for each window of it, about: clips' ends give more windows."""
    window = spec.corpus.window
    return 4 * spec.codec.motion_dim * window.stride / (1 + window.phases)
