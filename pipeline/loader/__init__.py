"""Token shards -> torch batches for autoregressive training: by index, or as a stream in a seeded, resumable order.

Knows no Ray. Names are imported on first use, so that modules without torch load in milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitwise_vae.lazy import lazy_names

if TYPE_CHECKING:
    from pipeline.loader.batches import Batch as Batch, collate as collate
    from pipeline.loader.conditioning import (
        Dropping as Dropping,
        NullCodes as NullCodes,
        read_null_codes as read_null_codes,
    )
    from pipeline.loader.dataset import TokenDataset as TokenDataset
    from pipeline.loader.features import TokenFeatures as TokenFeatures, TrainingTensors as TrainingTensors
    from pipeline.loader.row_groups import Reading as Reading
    from pipeline.loader.stream import (
        Ranks as Ranks,
        Shuffle as Shuffle,
        TokenStream as TokenStream,
        stream_state as stream_state,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "batches": ("Batch", "collate"),
        "conditioning": ("Dropping", "NullCodes", "read_null_codes"),
        "dataset": ("TokenDataset",),
        "features": ("TokenFeatures", "TrainingTensors"),
        "row_groups": ("Reading",),
        "stream": ("Ranks", "Shuffle", "TokenStream", "stream_state"),
    },
)
