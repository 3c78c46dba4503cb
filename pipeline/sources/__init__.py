"""Motion shards in every format -> clips. Formats are read one file each; registry.py is the way in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.sources.clip import Part, PreparedClip, RawClip, prepare_clip
    from pipeline.sources.registry import SUFFIXES, cut_file, format_of, read_part

__all__ = ["SUFFIXES", "Part", "PreparedClip", "RawClip", "cut_file", "format_of", "prepare_clip", "read_part"]

_IN_CLIP = ("Part", "PreparedClip", "RawClip", "prepare_clip")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'clip' if name in _IN_CLIP else 'registry'}"), name)
