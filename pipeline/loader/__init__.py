"""Token shards -> torch batches for autoregressive training: by index, or as a stream in a seeded, resumable order.

Knows no Ray. Names are imported on first use, so that modules without torch load in milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.loader.batches import Batch, collate
    from pipeline.loader.conditioning import Dropping, NullCodes, read_null_codes
    from pipeline.loader.dataset import TokenDataset
    from pipeline.loader.features import TokenFeatures, TrainingTensors
    from pipeline.loader.row_groups import Reading
    from pipeline.loader.stream import Ranks, Shuffle, TokenStream, stream_state
    from pipeline.loader.tar_stream import TarSampleStream, TarStream

_HOMES = {
    "batches": ("Batch", "collate"),
    "conditioning": ("Dropping", "NullCodes", "read_null_codes"),
    "dataset": ("TokenDataset",),
    "features": ("TokenFeatures", "TrainingTensors"),
    "row_groups": ("Reading",),
    "stream": ("Ranks", "Shuffle", "TokenStream", "stream_state"),
    "tar_stream": ("TarSampleStream", "TarStream"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "Dropping",
    "NullCodes",
    "Ranks",
    "Reading",
    "Shuffle",
    "TarSampleStream",
    "TarStream",
    "TokenDataset",
    "TokenFeatures",
    "TokenStream",
    "TrainingTensors",
    "collate",
    "read_null_codes",
    "stream_state",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
