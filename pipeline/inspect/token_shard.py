"""A token shard or fragment that was named by itself: its rows, and the schedule that its bits follow.

Knows no Ray or torch. A Parquet shard carries its contract; for a tar, the dataset around it is looked for.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pydantic import ValidationError

from bitwise_vae.config import PRESETS
from pipeline.contract.drop_reasons import ClipError
from pipeline.contract.schema import CONTRACT_KEY, LEDGER_KEY
from pipeline.contract.specs import CodecSpec, Contract
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.tar_shard import table_of_tar
from pipeline.errors import InputFormatError, OutputMismatchError, VerifyError
from pipeline.inspect.recognise import Found, Kind
from pipeline.sources.formats.arrays import array_from_npy
from pipeline.storage import parent_and_name
from pipeline.tables import open_parquet

LEVELS_UP = 4
"""Folders above a shard in which its dataset.json is looked for."""


@dataclass(frozen=True, eq=False)
class TokenShard:
    """Rows of a shard with what is known of them; built by `open_token_shard`."""

    rows: pa.Table
    codec: CodecSpec
    contract: Contract | None
    """None for a tar whose dataset is not around it."""
    has_schedule: bool
    """Whether `codec.patch_nums` is known: else all tokens stand there as one scale."""
    has_ledger: bool
    """Whether it is a fragment of a token store."""


def open_token_shard(found: Found) -> TokenShard:
    """Read a token shard.

    Raises:
        InputFormatError: its contract is not one of this version.
        VerifyError: it is damaged.
    """
    data = found.folder.read(found.name)
    try:
        return _of_parquet(data) if found.kind is Kind.TOKEN_PARQUET else _of_tar(data, found)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InputFormatError(
            f"{found.place}: the contract is of another version ({where}: {fault['msg']})"
        ) from error
    except (pa.ArrowException, tarfile.TarError, ClipError, OSError, ValueError) as error:
        raise VerifyError(f"{found.place} is damaged ({error}): run motion-tokens verify on its dataset") from error


def _of_parquet(data: bytes) -> TokenShard:
    file = open_parquet(io.BytesIO(data))
    metadata = file.metadata.metadata or {}
    contract = Contract.model_validate_json(metadata[CONTRACT_KEY])
    return TokenShard(file.read(), contract.codec, contract, True, LEDGER_KEY in metadata)


def _of_tar(data: bytes, found: Found) -> TokenShard:
    contract = _contract_around(found)
    codec = contract.codec if contract else _codec_of_arrays(data)
    table = table_of_tar(data, codec, contract.corpus if contract else None, found.name)
    return TokenShard(table, codec, contract, contract is not None or len(codec.patch_nums) > 1, False)


def _contract_around(found: Found) -> Contract | None:
    """Return the contract of the dataset that names this shard, looked for in the folders above it."""
    folder, inner = found.folder, PurePosixPath(found.name)
    for _ in range(LEVELS_UP):
        try:
            manifest = read_manifest(folder)
        except OutputMismatchError:
            manifest = None
        if manifest and any(file.path == str(inner) for file in manifest.all_files):
            return manifest.contract
        parent, name = parent_and_name(folder.url, folder.options)
        if not name:
            return None
        folder, inner = parent, PurePosixPath(name) / inner
    return None


def _codec_of_arrays(data: bytes) -> CodecSpec:
    """Return what the first sample's shape says: tokens and bits; a schedule only where a preset has so many tokens."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        first = tar.next()
        file = tar.extractfile(first) if first else None
        num_tokens, num_bytes = array_from_npy(file.read() if file else b"").shape[-2:]
    known = (tuple(preset["patch_nums"]) for preset in PRESETS.values())
    patch_nums = next((schedule for schedule in known if sum(schedule) == num_tokens), (num_tokens,))
    return CodecSpec(
        weights="",
        statistics="",
        motion_dim=0,
        code_dim=8 * num_bytes,
        patch_nums=patch_nums,
        hidden_dim=0,
        depth=0,
        num_heads=0,
        fps=0,
    )
