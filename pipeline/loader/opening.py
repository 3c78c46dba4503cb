"""What a loader demands of a dataset before it reads a row: published, of the wanted codec, with such a split.

Knows no Ray or torch, and reads dataset.json alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.contract.specs import CodecSpec, Contract
from pipeline.dataset.manifest import Manifest, require_manifest, split_version
from pipeline.errors import ContractMismatchError, InputNotFoundError, OutputMismatchError
from pipeline.hashing import canonical_json
from pipeline.storage import Folder


def open_published(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Folder, Manifest]:
    """Return folder and manifest of a dataset that has passed its gate, or was published without.

    Args:
        url: its folder, or ``DATASET/versions/VERSION.json``.
        storage_options: passed to fsspec.

    Raises:
        InputNotFoundError: there is no dataset.
        OutputMismatchError: it is staged, or dataset.json is not one of ours.
        VerifyError: the version is missing or damaged.
    """
    place, version = split_version(url)
    folder = Folder(place, storage_options)
    manifest = require_manifest(folder, version)
    if manifest.status == "staged":
        raise OutputMismatchError(
            f"{folder} is staged, not published: its gate failed; report/report.html in it says why, and the same"
            " tokenize command with another gate judges again"
        )
    return folder, manifest


def require_codec(folder: Folder, contract: Contract, codec: CodecSpec) -> None:
    """Make sure that tokens mean what they are wanted for.

    Raises:
        ContractMismatchError: a field of the codec differs; the message names all that do.
    """
    ours, theirs = codec.model_dump(mode="json"), contract.codec.model_dump(mode="json")
    differing = [
        f"{name}: wanted {canonical_json(value)}, found {canonical_json(theirs[name])}"
        for name, value in ours.items()
        if theirs[name] != value
    ]
    if differing:
        raise ContractMismatchError(
            f"{folder} holds tokens of another codec than the one wanted: {'; '.join(differing)}. Tokenize the motion"
            " with the wanted codec, or name a dataset of it"
        )


def shards_of_split(folder: Folder, manifest: Manifest, shard_format: str, split: str | None) -> list[int]:
    """Return the positions of the shards of a split, in order; None: of all splits.

    Raises:
        OutputMismatchError: the dataset has no shards of this format.
        InputNotFoundError: no such split, or it is empty.
    """
    if shard_format not in manifest.shards:
        raise OutputMismatchError(
            f"{folder} has no {shard_format} shards, only {', '.join(sorted(manifest.shards))}: motion-tokens export"
            f" --set export.formats={shard_format} writes them"
        )
    shards = manifest.shards[shard_format]
    chosen = [at for at, shard in enumerate(shards) if split in (None, shard.split) and shard.windows]
    if not chosen:
        counts = ", ".join(f"{name} ({counts.windows} windows)" for name, counts in sorted(manifest.splits.items()))
        raise InputNotFoundError(f"{folder}: split {split!r} has no windows; there are: {counts or 'none'}")
    return chosen
