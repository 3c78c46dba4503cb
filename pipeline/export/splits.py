"""Which split a clip belongs to: a threshold on a salted hash, or a file that lists the clips.

Knows no Ray or torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract.specs import ExportSpec
from pipeline.errors import ConfigError
from pipeline.export.clips import ClipTable, texts_of
from pipeline.hashing import digest_of, hash64
from pipeline.settings.job_config import SplitConfig, check_split_name
from pipeline.storage import read_text

UNLISTED = "unlisted"


@dataclass(frozen=True)
class Splits:
    """The split of every clip; built by `assign_splits`."""

    names: tuple[str, ...]
    """All splits, in order of their names."""
    of_clip: NDArray[np.int32]
    """(num_clips,) index into the names."""

    def holds(self, name: str) -> NDArray[np.bool_]:
        """Return (num_clips,) whether a clip is of a split."""
        is_of: NDArray[np.bool_] = self.of_clip == self.names.index(name)
        return is_of

    def to_arrow(self) -> pa.Array:
        """Return the name of every clip's split."""
        return pa.DictionaryArray.from_arrays(self.of_clip, pa.array(self.names, pa.string())).dictionary_decode()


def assign_splits(
    clips: ClipTable, export: ExportSpec, listed: Mapping[str, str], shares: NDArray[np.float64] | None = None
) -> Splits:
    """Return the split of every clip, dropped ones too.

    A 64-bit hash of the salted id (or of another column) falls into the ratios' shares of the line, so a clip keeps
    its split whatever else is in the corpus.

    Args:
        listed: clip id -> split for `by: file`; clips that the file does not list go to `unlisted`.
        shares: (num_clips,) where clips fall on the line, where a carried column decides.
    """
    splits = export.splits
    if splits.by == "file":
        names = sorted({*listed.values(), UNLISTED})
        index_of = {name: index for index, name in enumerate(names)}
        found = (index_of[_listed_split(clip_id, listed)] for clip_id in texts_of(clips.table["clip_id"]))
        return Splits(tuple(names), np.fromiter(found, np.int32))
    names = list(splits.ratios)
    edges = np.cumsum([splits.ratios[name] for name in names])
    if shares is None:
        shares = split_shares(splits.salt, texts_of(clips.table[splits.by]))
    nth = np.minimum(np.searchsorted(edges, shares, side="right"), len(names) - 1)
    rank = np.argsort(np.argsort(names)).astype(np.int32)
    return Splits(tuple(sorted(names)), rank[nth])


def _listed_split(clip_id: str, listed: Mapping[str, str]) -> str:
    """Return the split of a clip that is listed by its id, or by the key that follows ``#`` in it."""
    return listed.get(clip_id) or listed.get(clip_id.partition("#")[2], UNLISTED)


def split_shares(salt: str, values: Iterable[object]) -> NDArray[np.float64]:
    """Return where values fall on the line of splits, (n,) from 0 to 1; clips without a value stand together."""
    shares = (hash64(f"{salt}\0{'' if value is None else value}") / 2**64 for value in values)
    return np.fromiter(shares, np.float64)


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

    The metadata.json of the later training code is read as well: it lists pairs of key and length, and its `val` is
    drawn from its `test`; such clips are of `val` here.

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
        for entry in ids:
            is_pair = isinstance(entry, list) and len(entry) == 2
            clip_id = str(entry[0] if is_pair else entry)
            other = listed.get(clip_id, split)
            if is_pair and {other, split} == {"test", "val"}:
                listed[clip_id] = "val"
            elif clip_id in listed:
                raise ConfigError(f"{name}: clip {clip_id!r} stands in {other} and in {split}")
            else:
                listed[clip_id] = split
    return listed
