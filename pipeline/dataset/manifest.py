"""dataset.json and its versions: the one record of truth, replaced last.

Knows no Ray or torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.contract.schema import SCHEMA_VERSION
from pipeline.contract.specs import Contract
from pipeline.dataset.paths import MANIFEST_PATH, STAGED_PATH
from pipeline.errors import InputNotFoundError, OutputMismatchError, VerifyError
from pipeline.run.ownership import Ownership
from pipeline.storage import Folder

_VERSION_URL = re.compile(r"(.+)/versions/([0-9a-f]{16})\.json")

Status = Literal["complete", "unrated", "staged"]


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


class GateRecord(_Record):
    """What the gate was told to do and what came of it; only what is equal on every machine."""

    mode: Literal["enforce", "warn", "off"]
    max_error_ratio: float
    max_flip_rate: float | None
    outcome: Literal["passed", "passed_without_reference", "failed", "not_run"]
    failed: tuple[str, ...] = ()
    """Names of the checks that failed: digest, error, mean, flips."""
    reference: dict[str, float] | None = None
    """The error that the checkpoint recorded on held-out motion."""


class Manifest(_Record):
    """The contents of dataset.json; holds no time, host or place."""

    schema_version: int = SCHEMA_VERSION
    status: Status
    gate: GateRecord | None = None
    """None in datasets from before there was a gate."""
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
        tree = self.model_dump(mode="json", exclude=None if self.gate else {"gate"})
        return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()

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


def require_manifest(output: Folder, version: str | None = None) -> Manifest:
    """Return the manifest of a dataset.

    Args:
        version: an earlier one; the published one where it is not given.

    Raises:
        InputNotFoundError: there is no dataset.
        OutputMismatchError: dataset.json is not one of ours, or of another schema version.
        VerifyError: the version is missing or damaged.
    """
    manifest = read_manifest(output) if version is None else read_version(output, version)
    if manifest is None:
        raise InputNotFoundError(f"{output} holds no dataset.json: name the folder that tokenize wrote")
    return manifest


def read_version(output: Folder, version: str) -> Manifest:
    """Return the manifest of a version, published now or earlier.

    Raises:
        VerifyError: it is missing or damaged.
    """
    path = f"versions/{version}.json"
    try:
        return Manifest.model_validate_json(output.read(path))
    except (FileNotFoundError, ValidationError) as error:
        raise VerifyError(
            f"{output}/{path} cannot be read, so what it names is not known ({type(error).__name__}):"
            " restore it, or delete it and clean"
        ) from error


def publish_version_record(output: Folder, manifest: Manifest) -> None:
    """Write the manifest of a version for good."""
    output.publish(f"versions/{manifest.version}.json", manifest.to_bytes())


def publish_manifest(owner: Ownership, manifest: Manifest) -> None:
    """Replace dataset.json: from now on this version is the dataset, and none is staged beside it."""
    if owner.output.exists(STAGED_PATH):
        owner.delete([STAGED_PATH])
    owner.publish({MANIFEST_PATH: manifest.to_bytes()})


def version_path(version: str, path: str) -> str:
    """Return where a version keeps its own copy of a file beside the shards."""
    return f"versions/{version}/{path}"


def read_beside(output: Folder, manifest: Manifest, path: str) -> bytes:
    """Return a file beside the shards as a version has it, whatever stands under its own name meanwhile.

    Raises:
        VerifyError: it is missing or altered.
    """
    wanted = {file.path: file.sha256 for file in manifest.files}.get(path)
    for place in (version_path(manifest.version, path), path):  # a copy of a dataset may lack its versions
        try:
            data = output.read(place)
        except FileNotFoundError:
            continue
        if hashlib.sha256(data).hexdigest() == wanted:
            return data
    raise VerifyError(f"{output}/{path} is missing or altered: run motion-tokens verify")


def split_version(url: str) -> tuple[str, str | None]:
    """Return folder and version of ``DATASET/versions/VERSION.json``; any other location is a folder's."""
    named = _VERSION_URL.fullmatch(url)
    return (named[1], named[2]) if named else (url, None)


def read_staged(output: Folder) -> Manifest | None:
    """Return the dataset that failed the gate and stands beside the published one, None where there is none."""
    try:
        return Manifest.model_validate_json(output.read(STAGED_PATH))
    except FileNotFoundError:
        return None


def is_published(output: Folder) -> bool:
    """Return whether a dataset stands that passed its gate, or was published without."""
    manifest = read_manifest(output)
    return manifest is not None and manifest.status != "staged"


def stage_manifest(owner: Ownership, manifest: Manifest) -> None:
    """Name a version that failed the gate beside the published one."""
    owner.publish({STAGED_PATH: manifest.to_bytes()})


def joined_status(manifests: Sequence[Manifest]) -> Status:
    """Return the status of a dataset made of published ones: complete only where all are."""
    return "complete" if all(manifest.status == "complete" for manifest in manifests) else "unrated"


def shared_gate(manifests: Sequence[Manifest]) -> GateRecord | None:
    """Return the gate that published datasets share, None where they differ."""
    gates = [manifest.gate for manifest in manifests]
    return gates[0] if all(gate == gates[0] for gate in gates) else None


def shards_txt(manifest_shards: tuple[ShardFile, ...], split: str) -> bytes:
    """Return the list of a split's tar shards, in order, relative to its folder."""
    names = [shard.path.rsplit("/", 1)[1] for shard in manifest_shards if shard.split == split]
    return "".join(f"{name}\n" for name in names).encode()
