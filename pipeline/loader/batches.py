"""Columns of rows -> batches of torch tensors, and several batches -> one.

Knows no storage, shard or order. Bits stay packed, eight to a byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.contract.schema import AUDIO_ARRAYS, RESERVED_COLUMNS, WINDOW_NUMBERS
from pipeline.errors import ConfigError
from pipeline.loader.row_groups import Column
from pipeline.sources.audio import decode_sound

Batch = dict[str, Any]
"""Tensors by name, lists of plain values for text and carried columns: numbers too, since any may be missing."""


def is_per_window(name: str, column: Column | torch.Tensor | Sequence[object]) -> bool:
    """Return whether a column differs between windows of a clip; all others are the clip's own."""
    is_array = isinstance(column, np.ndarray | torch.Tensor) and column.ndim > 1
    return name in WINDOW_NUMBERS or name in AUDIO_ARRAYS or is_array


def batch_of_columns(columns: Mapping[str, Column], windows_per_sample: int = 1, *, is_flac: bool = False) -> Batch:
    """Return a batch of the columns of its rows.

    Args:
        columns: name -> n * windows_per_sample values, windows of a sample together.
        windows_per_sample: above 1, columns that differ between windows get an axis of that length; of the others
            each sample has one value.
        is_flac: whether sound is stored as flac, else as raw samples.

    Returns:
        Packed bits (B, tokens, code_dim / 8) uint8; emitted arrays in their shapes; our own numbers (B,) int64;
        audio (B, samples) int16; lists for anything else.
    """
    batch: Batch = {}
    for name, column in columns.items():
        is_many = is_per_window(name, column)
        step = 1 if is_many else windows_per_sample
        if name in AUDIO_ARRAYS:
            values: torch.Tensor | list[object] = _padded(
                [sound_of_bytes(sound, is_flac) for sound in column.to_pylist()]
            )
        elif isinstance(column, np.ndarray):
            values = _tensor(column[::step])
        else:
            values = column.take(pa.array(np.arange(0, len(column), step))).to_pylist()
        if is_many and windows_per_sample > 1 and isinstance(values, torch.Tensor):
            values = values.reshape(-1, windows_per_sample, *values.shape[1:])
        batch[name] = values
    return batch


def merged(parts: Sequence[Batch], places: Sequence[NDArray[np.int64]]) -> Batch:
    """Return the batch whose rows `places[i]` are those of `parts[i]`.

    Raises:
        ConfigError: the parts have other columns, or arrays of other shapes.
    """
    if len(parts) == 1:
        return parts[0]
    batch: Batch = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        order = torch.from_numpy(np.argsort(np.concatenate(places), kind="stable"))
        if name in AUDIO_ARRAYS:  # windows of equally many frames may differ by a sample
            batch[name] = _padded([sound for value in values for sound in value])[order]
        elif all(isinstance(value, torch.Tensor) for value in values):
            if len({value.shape[1:] for value in values}) > 1:
                shapes = ", ".join(str(tuple(value.shape[1:])) for value in values)
                raise ConfigError(f"column {name!r} has other shapes in the datasets that are mixed: {shapes}")
            batch[name] = torch.cat(values)[order]
        else:
            items = [item for value in values for item in value]
            batch[name] = [items[number] for number in order.tolist()]
    return batch


def sample_of(batch: Batch, number: int) -> Batch:
    """Return one sample of a batch: tensors without the first axis, numbers and text as plain values."""
    sample = {name: value[number] for name, value in batch.items()}
    return {
        name: value.item() if isinstance(value, torch.Tensor) and not value.ndim else value
        for name, value in sample.items()
    }


def collate(samples: Sequence[Batch]) -> Batch:
    """Return samples of a `TokenDataset` as a batch, as `DataLoader(collate_fn=..)` wants it.

    Unlike torch's own collation it takes carried values as they are, missing ones too.
    """
    batch: Batch = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in AUDIO_ARRAYS:
            batch[name] = _padded(values)
        elif isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        elif name in RESERVED_COLUMNS and isinstance(values[0], int):
            batch[name] = torch.tensor(values)
        else:
            batch[name] = values
    return batch


def _tensor(column: NDArray[np.generic]) -> torch.Tensor:
    if column.ndim == 1 and column.dtype.kind == "i":
        column = column.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(column))


def sound_of_bytes(data: bytes, is_flac: bool) -> torch.Tensor:
    """Return stored sound, raw little-endian or flac: (samples,) int16.

    Raises:
        ConfigError: flac needs the extra `audio`, which is not installed.
    """
    samples = decode_sound(data).samples if is_flac else np.frombuffer(data, "<i2")
    return torch.from_numpy(np.array(samples, np.int16))


def _padded(sounds: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return sounds (.., samples) as (n, .., samples); zeros stand behind shorter ones."""
    longest = max(sound.shape[-1] for sound in sounds)
    return torch.stack([torch.nn.functional.pad(sound, (0, longest - sound.shape[-1])) for sound in sounds])
