"""What stands at a path: a dataset, a token shard, a checkpoint, statistics or motion.

Knows no Ray or torch. Looks at suffixes first, then at footers and first bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.contract.schema import CONTRACT_KEY
from pipeline.dataset.paths import MANIFEST_PATH
from pipeline.errors import InputFormatError, InputNotFoundError
from pipeline.sources.registry import SUFFIXES, format_by_suffix
from pipeline.statistics.motion_statistics import STATISTICS_KIND
from pipeline.storage import Folder, parent_and_name, without_secrets
from pipeline.tables import metadata_of, read_footer

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")
STORE_PATH = "_store"


class Kind(StrEnum):
    """What can be looked into."""

    DATASET = "token dataset"
    BEGUN = "token dataset, begun"
    TOKEN_PARQUET = "token shard, Parquet"
    TOKEN_TAR = "token shard, WebDataset"
    CHECKPOINT = "checkpoint"
    STATISTICS = "motion statistics"
    MOTION = "motion file"
    MOTION_FOLDER = "folder of motion"


@dataclass(frozen=True)
class Found:
    """A path and what it is; `name` is a file of `folder`, "" where the folder itself is meant."""

    kind: Kind
    folder: Folder
    name: str

    @property
    def place(self) -> str:
        """The full path, without secrets."""
        return without_secrets(self.folder.url_of(self.name))


def recognise(path: str, options: Mapping[str, Any] | None = None) -> Found:
    """Say what stands at a path or URL.

    Raises:
        InputNotFoundError: nothing does, or a folder without anything of ours.
        InputFormatError: a file of an unknown kind.
        StorageError: storage does not answer.
    """
    parent, name = parent_and_name(path, options)
    if name and parent.exists(name):
        return _of_file(parent, name)
    folder = Folder(path, options)
    names = folder.list_names("")
    if MANIFEST_PATH in names:
        return Found(Kind.DATASET, folder, "")
    if STORE_PATH in names:
        return Found(Kind.BEGUN, folder, "")
    if not names:
        raise InputNotFoundError(f"nothing stands at {without_secrets(path)}: check the path")
    if any(file.path.lower().endswith(tuple(SUFFIXES)) for file in folder.list_files()):
        return Found(Kind.MOTION_FOLDER, folder, "")
    shown = ", ".join(names[:5])
    raise InputNotFoundError(
        f"{without_secrets(path)} holds neither {MANIFEST_PATH} nor motion ({', '.join(SUFFIXES)}), but {shown}"
    )


def _of_file(folder: Folder, name: str) -> Found:
    suffix = PurePosixPath(name).suffix.lower()
    if name == MANIFEST_PATH:
        return Found(Kind.DATASET, folder, "")
    if suffix in CHECKPOINT_SUFFIXES:
        return Found(Kind.CHECKPOINT, folder, name)
    if suffix == ".json":
        return Found(_kind_of_json(folder, name), folder, name)
    kind = format_by_suffix(name)
    if kind is None:
        known = ", ".join([*SUFFIXES, *CHECKPOINT_SUFFIXES, ".json", "a folder"])
        raise InputFormatError(f"{without_secrets(folder.url_of(name))}: not a kind that is known ({known})")
    if kind == "parquet" and _is_token_parquet(folder, name):
        return Found(Kind.TOKEN_PARQUET, folder, name)
    if kind == "webdataset" and _is_token_tar(folder, name):
        return Found(Kind.TOKEN_TAR, folder, name)
    return Found(Kind.MOTION, folder, name)


def _kind_of_json(folder: Folder, name: str) -> Kind:
    try:
        tree = json.loads(folder.read(name))
    except ValueError as error:
        raise InputFormatError(f"{without_secrets(folder.url_of(name))} is not JSON: {error}") from error
    if isinstance(tree, dict) and tree.get("kind") == STATISTICS_KIND:
        return Kind.STATISTICS
    raise InputFormatError(
        f"{without_secrets(folder.url_of(name))} is none of ours: name a {MANIFEST_PATH}, a statistics file,"
        " a checkpoint, a shard or a folder"
    )


def _is_token_parquet(folder: Folder, name: str) -> bool:
    with folder.open(name) as file:
        try:
            metadata = metadata_of(read_footer(file)).metadata
        except (pa.ArrowException, OSError, ValueError):
            return False
    return CONTRACT_KEY in (metadata or {})


def _is_token_tar(folder: Folder, name: str) -> bool:
    with folder.open(name) as file:
        head = io.BytesIO(file.read(16 * tarfile.BLOCKSIZE))
    try:
        with tarfile.open(fileobj=head, mode="r:") as tar:
            first = tar.next()
    except tarfile.TarError:
        return False
    return first is not None and first.name.endswith(".prev.npy")
