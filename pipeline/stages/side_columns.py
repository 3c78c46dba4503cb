"""Columns that windows take over from their clips: carried values repeated, audio cut or pointed at.

Knows no Ray, torch or storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.columns import side_fields
from pipeline.contract.schema import AUDIO_ARRAYS
from pipeline.contract.specs import Contract
from pipeline.sources.audio import Samples, cut_samples, flac_bytes, window_samples

CHUNK_BYTES = 1 << 30
"""Of a binary column; Arrow's have 2 GiB at most."""


def side_columns(
    clips: pa.Table,
    clip_of_row: NDArray[np.int64],
    start_frame: NDArray[np.int64],
    contract: Contract,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[pa.Array | pa.ChunkedArray]:
    """Return the columns of `side_fields`, one row a window.

    Args:
        clips: rows of `clip_schema`, one a clip.
        clip_of_row: (num_windows,) row of each window's clip.
        start_frame: (num_windows,) first frame of `this`.
        chunk_bytes: bytes of audio in a chunk of a column at most, or those of one window.
    """
    columns = _audio_columns(clips, clip_of_row, start_frame, contract, chunk_bytes)
    fields = side_fields(contract.corpus)
    taken = pa.array(clip_of_row)
    for field in fields:
        if field.name not in columns:
            columns[field.name] = clips[field.name].combine_chunks().take(taken)
    return [columns[field.name] for field in fields]


def audio_account(clips: pa.Table, fps: float) -> dict[str, float]:
    """Return how many clips have audio, how many of it drifts by more than a frame, and the largest drift, seconds.

    Args:
        clips: rows of `clip_schema`.
        fps: of the codec.
    """
    if "audio_drift_s" not in clips.column_names:
        return {}
    drifts = np.abs(clips["audio_drift_s"].to_numpy())
    largest = float(drifts.max(initial=0.0))
    return {"clips": len(drifts), "drifting_clips": int((drifts > 1 / fps).sum()), "largest_drift_s": largest}


def _audio_columns(
    clips: pa.Table,
    clip_of_row: NDArray[np.int64],
    start_frame: NDArray[np.int64],
    contract: Contract,
    chunk_bytes: int,
) -> dict[str, pa.Array | pa.ChunkedArray]:
    """Return the columns in which a window's audio differs from its clip's.

    Cut: samples of both halves, with zeros where the clip has none. Referenced: first sample of `this`, and how many
    there are; they may reach behind the end of the audio, as a padded `this` does behind that of the motion.
    """
    rule, codec = contract.corpus.audio, contract.codec
    if rule is None:
        return {}
    frames, rates = codec.window_frames, clips["audio_rate_hz"].to_numpy()
    halves = [
        tuple(window_samples(int(start) + offset, frames, codec.fps, int(rates[clip])) for offset in (-frames, 0))
        for clip, start in zip(clip_of_row, start_frame, strict=True)
    ]
    if rule.mode == "reference":
        return {
            "audio_start": pa.array([this[0] for _, this in halves], pa.int64()),
            "audio_num_samples": pa.array([this[1] for _, this in halves], pa.int32()),
        }
    samples = [np.frombuffer(value.as_buffer(), "<i2").astype(np.int16, copy=False) for value in clips["audio"]]
    columns = {}
    for half, name in enumerate(AUDIO_ARRAYS):
        cuts = [(samples[clip], *ranges[half]) for clip, ranges in zip(clip_of_row, halves, strict=True)]
        if rule.encoding == "int16":
            columns[name] = _raw_sounds(cuts, chunk_bytes)
        else:
            sounds = (
                flac_bytes(cut_samples(*cut), int(rates[clip])) for clip, cut in zip(clip_of_row, cuts, strict=True)
            )
            columns[name] = pa.array(sounds, pa.binary())
    return columns


def _raw_sounds(cuts: Sequence[tuple[Samples, int, int]], chunk_bytes: int) -> pa.ChunkedArray:
    """Return the cuts of all rows, each (sound, first sample, samples), as little-endian int16."""
    lengths = np.array([2 * num_samples for *_, num_samples in cuts], np.int64)
    chunks = []
    for begin, stop in _runs(lengths, chunk_bytes):
        rows = cuts[begin:stop]
        edges = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[begin:stop])])
        buffer = np.concatenate([cut_samples(*row) for row in rows]).astype("<i2", copy=False)
        parts = [None, pa.py_buffer(edges.astype(np.int32)), pa.py_buffer(buffer)]
        chunks.append(pa.BinaryArray.from_buffers(pa.binary(), len(rows), parts))
    return pa.chunked_array(chunks, pa.binary())


def _runs(sizes: NDArray[np.int64], limit: int) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of runs that sum up to `limit` at most, or have one element."""
    begin = total = 0
    for index, size in enumerate(sizes.tolist()):
        if index > begin and total + size > limit:
            yield begin, index
            begin, total = index, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)
