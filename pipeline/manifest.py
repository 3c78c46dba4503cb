"""dataset.json and its versions: the one record of truth, replaced last.

Knows no Ray or torch.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import Contract
from pipeline.errors import OutputMismatchError
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage import Folder

MANIFEST_PATH = "dataset.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardFile(_Record):
    """One token shard as it stands in storage."""

    path: str
    split: str
    windows: int
    bytes: int
    sha256: str


class OtherFile(_Record):
    """A file beside the shards: index, constants, card, lists."""

    path: str
    bytes: int
    sha256: str


class SplitCounts(_Record):
    """What one split holds."""

    clips: int
    windows: int
    frames: int
    hours: float


class Manifest(_Record):
    """The contents of dataset.json; holds no time, host or place."""

    schema_version: int = SCHEMA_VERSION
    status: Literal["complete", "unrated", "staged"]
    spec_id: str
    export_id: str
    plan: str
    """Hash of the unit keys that the dataset was made from."""
    contract: Contract
    export: dict[str, Any]
    splits: dict[str, SplitCounts]
    shards: dict[str, tuple[ShardFile, ...]]
    """format -> shards in order; the same windows in the same order in every format."""
    files: tuple[OtherFile, ...]
    counts: dict[str, int]
    drops: dict[str, int]

    def to_bytes(self) -> bytes:
        """Return the text of dataset.json."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode()

    @property
    def version(self) -> str:
        """Digest of the text: the name of this version."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    @property
    def all_files(self) -> list[ShardFile | OtherFile]:
        """Every file that the manifest names."""
        return [*(shard for shards in self.shards.values() for shard in shards), *self.files]

    @property
    def num_windows(self) -> int:
        """Windows of all splits."""
        return self.counts["windows"]


def read_manifest(output: Folder) -> Manifest | None:
    """Return the published manifest, or None where there is none.

    Raises:
        OutputMismatchError: dataset.json is not one of ours, or of another schema version.
    """
    try:
        data = output.read(MANIFEST_PATH)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise OutputMismatchError(f"{output} is, or lies below, a file: name a folder") from error
    try:
        tree = json.loads(data)
        version = tree.get("schema_version") if isinstance(tree, dict) else None
        if version == SCHEMA_VERSION:
            return Manifest.model_validate(tree)
        finding = f"has schema version {version}, this program reads {SCHEMA_VERSION}"
    except (ValidationError, ValueError) as error:
        finding = f"is not a token dataset's: {str(error).splitlines()[0]}"
    raise OutputMismatchError(f"{output}/{MANIFEST_PATH} {finding}; name another folder")


def publish_manifest(output: Folder, manifest: Manifest) -> None:
    """Write this version for good, then replace dataset.json."""
    data = manifest.to_bytes()
    output.publish(f"versions/{manifest.version}.json", data)
    output.publish(MANIFEST_PATH, data)


def shards_txt(manifest_shards: tuple[ShardFile, ...], split: str) -> bytes:
    """Return the list of a split's tar shards, in order, relative to its folder."""
    names = [shard.path.rsplit("/", 1)[1] for shard in manifest_shards if shard.split == split]
    return "".join(f"{name}\n" for name in names).encode()
