"""Which split a clip belongs to: a threshold on a salted hash, or a file that lists the clips.

Knows no Ray or torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.config import ExportSpec, digest_of, hash64
from pipeline.errors import ConfigError
from pipeline.export.clips import ClipTable
from pipeline.job_config import SplitConfig, check_split_name
from pipeline.storage import read_text

UNLISTED = "unlisted"


def assign_splits(clips: ClipTable, export: ExportSpec, listed: Mapping[str, str]) -> list[str]:
    """Return the split of every clip, dropped ones too.

    A 64-bit hash of the salted id (or source) falls into the ratios' shares of the line, so a clip keeps
    its split whatever else is in the corpus.

    Args:
        listed: clip id -> split for `by: file`; clips that the file does not list go to `unlisted`.
    """
    splits = export.splits
    if splits.by == "file":
        return [listed.get(clip_id, UNLISTED) for clip_id in clips.table["clip_id"].to_pylist()]
    names = list(splits.ratios)
    edges = np.cumsum([splits.ratios[name] for name in names])
    keys = clips.table["clip_id" if splits.by == "clip_id" else "source"].to_pylist()
    shares = np.array([hash64(f"{splits.salt}\0{key}") / 2**64 for key in keys])
    index = np.minimum(np.searchsorted(edges, shares, side="right"), len(names) - 1)
    return [names[i] for i in index]


def listed_splits(splits: SplitConfig, options: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return clip id -> split of the file that `splits.file` names, and its digest; both empty without one.

    Raises:
        RequestError: the file is missing or has another layout.
    """
    if splits.file is None:
        return {}, ""
    listed = splits_from_json(read_text(splits.file, options), splits.file)
    return listed, digest_of(sorted(listed.items()))


def splits_from_json(text: str, name: str) -> dict[str, str]:
    """Return clip id -> split of a JSON file ``{"train": [ids], "val": [ids], ..}``.

    Raises:
        ConfigError: the file has another layout, or lists a clip twice.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(ids, list) for ids in tree.values()):
        raise ConfigError(f'{name}: wanted {{"train": [clip ids], "val": [clip ids], ..}}')
    listed: dict[str, str] = {}
    for split, ids in tree.items():
        check_split_name(split)
        if split == UNLISTED:
            raise ConfigError(f"{name}: {UNLISTED!r} is the split of clips that the file does not list")
        for clip_id in ids:
            if str(clip_id) in listed:
                raise ConfigError(f"{name}: clip {clip_id!r} stands in {listed[str(clip_id)]} and in {split}")
            listed[str(clip_id)] = split
    return listed
