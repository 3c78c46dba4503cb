"""What of an output no kept version needs: found first, deleted on request.

Knows no Ray or torch. A file whose name it does not know is never touched.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.dataset.manifest import Manifest, read_staged, read_version, require_manifest
from pipeline.dataset.paths import DEALT_PATH, SHARD_DIGITS
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import ActiveRunError, OutputMismatchError
from pipeline.plan.plan import plan_from_bytes
from pipeline.run.ownership import Ownership, watch
from pipeline.storage import Folder, StoredFile

TEMPORARY_AGE_S = 3600.0
DELETE_THREADS = 16

KINDS = ("versions", "fragments", "plans", "shards", "lists", "temporary")
"""In the order in which they are deleted: what names other files goes first, so that nothing names a missing file."""

_VERSION = re.compile(r"versions/([0-9a-f]{16})\.json")
_BESIDE = re.compile(r"versions/([0-9a-f]{16})/.+")
_PUBLISHED = re.compile(r"_store/([0-9a-f]{16})/published/([0-9a-f]{16})\.txt")
_PLAN = re.compile(r"_store/([0-9a-f]{16})/plans/([0-9a-f]{24})\.parquet")
_FRAGMENT = re.compile(r"_store/([0-9a-f]{16})/fragments/[0-9a-f]{2}/([0-9a-f]+)-([0-9a-f]+)\.parquet")
_DIGITS = f"[0-9a-f]{{{SHARD_DIGITS}}}"
_SHARD = re.compile(rf"(?:parquet/(\w+)/\1-{_DIGITS}\.parquet|webdataset/(\w+)/\2-{_DIGITS}\.tar)")
_LIST = re.compile(r"webdataset/\w+/shards\.txt|index/windows\.parquet")
_TEMPORARY = re.compile(r"(?:.*/)?\.[^/]+\.tmp")
_DEALT = re.compile(rf"{DEALT_PATH}/.+")
_RUN = re.compile(r"runs/[^/]+/run\.json")


@dataclass(frozen=True)
class Cleaning:
    """What may go: built by `find_outdated`."""

    outdated: Mapping[str, Sequence[StoredFile]]
    """kind -> files, kinds in order of deletion."""
    kept_versions: Sequence[str]
    """The current version first, a staged one beside it, then from the newest to the oldest; last those whose age
    nothing tells."""
    num_undated: int
    """Kept versions whose age nothing tells."""

    @property
    def num_files(self) -> int:
        """Files that may go."""
        return sum(len(files) for files in self.outdated.values())

    @property
    def num_bytes(self) -> int:
        """Their size."""
        return sum(file.num_bytes for files in self.outdated.values() for file in files)


def refuse_active_run(output: Folder) -> None:
    """Make sure that nobody works on the output: what he writes is named by no version yet.

    Raises:
        ActiveRunError: a run is active.
    """
    run = watch(output)
    if run is not None:
        raise ActiveRunError(
            f"run {run.run_id} on {run.host} (process {run.pid}) is active on {output}: clean when it has ended"
        )


def find_outdated(output: Folder, keep: int) -> Cleaning:
    """Return what no kept version of a dataset names.

    Kept are the current version, the last published others up to `keep`, and every version of which no
    run record tells when it was published. Of a run that did not reach its end, plan and fragments are kept
    until a later one has published.

    Args:
        keep: versions to keep, the current one included; at least 1.

    Raises:
        InputNotFoundError: there is no dataset.
        OutputMismatchError: dataset.json is not one of ours.
        VerifyError: a kept version or its plan cannot be read.
    """
    current = require_manifest(output)
    files = output.list_files()
    published_at = _publications(output, files)
    staged = read_staged(output)
    first = [current.version, *([staged.version] if staged else [])]
    versions = {match[1] for file in files if (match := _VERSION.fullmatch(file.path))} - set(first)
    dated = sorted(versions & set(published_at), key=lambda version: (published_at[version], version), reverse=True)
    undated = sorted(versions - set(dated))
    kept = [*first, *dated[: max(keep, 1) - 1], *undated]
    manifests = [current, *(read_version(output, version) for version in kept[1:])]
    dropped = (versions | set(published_at)) - set(kept)
    needed = _Needed.of(output, manifests, files, dropped)
    outdated: dict[str, list[StoredFile]] = {kind: [] for kind in KINDS}
    for file in files:
        kind = needed.kind_of_outdated(file, is_local=output.local_path("") is not None)
        if kind:
            outdated[kind].append(file)
    return Cleaning({kind: found for kind, found in outdated.items() if found}, kept, len(undated))


def delete_outdated(ownership: Ownership, keep: int) -> Cleaning:
    """Own an output, find what no kept version needs, delete it, and return what it was.

    One kind goes after the other; it can be stopped and done again.

    Args:
        ownership: of the output; held meanwhile.
        keep: as of `find_outdated`.

    Raises:
        InputNotFoundError: there is no dataset; in a folder of something else nothing is written.
        ActiveRunError: another run is active.
        OwnershipLostError: another run has taken over; what it needs is not deleted any more.
        StorageError: storage did not answer after all retries.
    """
    require_manifest(ownership.output)
    with ownership.held() as owner:
        cleaning = find_outdated(owner.output, keep)
        for files in cleaning.outdated.values():
            owner.delete(file.path for file in files)
    return cleaning


def _publications(output: Folder, files: Iterable[StoredFile]) -> dict[str, str]:
    """Return version -> time of its last publication (UTC, ISO), as the run records tell."""
    found: dict[str, str] = {}
    paths = [file.path for file in files if _RUN.fullmatch(file.path)]
    with ThreadPoolExecutor(DELETE_THREADS) as pool:
        for data in pool.map(output.read, paths):
            try:
                record = json.loads(data)
                version, finished = record["version"], record["finished"]
            except (ValueError, KeyError, TypeError):
                continue  # of a run that failed, or no record of ours
            found[str(version)] = max(found.get(str(version), ""), str(finished))
    return found


@dataclass(frozen=True)
class _Needed:
    """What the kept versions name; built and used up by `find_outdated`."""

    versions: frozenset[str]
    files: frozenset[str]
    fragments: frozenset[tuple[str, str, str]]
    """(spec id, unit key, stamp)."""
    plans: frozenset[tuple[str, str]]
    """(spec id, digest)."""
    unknown_stores: frozenset[str]
    """Stores that do not know which plan a kept version was made from: nothing of them goes."""

    @classmethod
    def of(
        cls, output: Folder, manifests: Sequence[Manifest], files: Sequence[StoredFile], dropped: set[str]
    ) -> _Needed:
        plans: dict[tuple[str, str], None] = {}
        unknown_stores: set[str] = set()
        for manifest in manifests:
            try:
                plan = TokenStore.of(output, manifest.spec_id).plan_of_version(manifest.version)
                plans[manifest.spec_id, plan.digest] = None
            except OutputMismatchError:
                unknown_stores.add(manifest.spec_id)
        current = next(iter(plans)) if plans and manifests[0].spec_id not in unknown_stores else None
        plans |= dict.fromkeys(_unfinished_plans(output, files, current, dropped))
        fragments = {
            (spec_id, unit.key, unit.stamp)
            for spec_id, digest in plans
            for unit in plan_from_bytes(output.read(f"_store/{spec_id}/plans/{digest}.parquet")).units
        }
        return cls(
            versions=frozenset(manifest.version for manifest in manifests),
            files=frozenset(file.path for manifest in manifests for file in manifest.all_files),
            fragments=frozenset(fragments),
            plans=frozenset(plans),
            unknown_stores=frozenset(unknown_stores),
        )

    def kind_of_outdated(self, file: StoredFile, is_local: bool) -> str | None:
        """Return the kind of a file that may go, None for one that stays."""
        path = file.path
        if _TEMPORARY.fullmatch(path):  # only local disks know them, and their version is a time in nanoseconds
            return "temporary" if is_local and time.time() - int(file.version) / 1e9 > TEMPORARY_AGE_S else None
        if _DEALT.fullmatch(path):
            return "temporary"  # no run is active that would gather it
        if _SHARD.fullmatch(path):
            return None if path in self.files else "shards"
        if _LIST.fullmatch(path):
            return None if path in self.files else "lists"
        if match := _VERSION.fullmatch(path):
            return None if match[1] in self.versions else "versions"
        if match := _BESIDE.fullmatch(path):
            return None if match[1] in self.versions else "lists"
        return self._kind_in_store(path)

    def _kind_in_store(self, path: str) -> str | None:
        match = _FRAGMENT.fullmatch(path) or _PLAN.fullmatch(path) or _PUBLISHED.fullmatch(path)
        if match is None or match[1] in self.unknown_stores:
            return None
        if match.re is _FRAGMENT:
            return None if match.groups() in self.fragments else "fragments"
        if match.re is _PLAN:
            return None if match.groups() in self.plans else "plans"
        return None if match[2] in self.versions else "plans"


def _unfinished_plans(
    output: Folder, files: Sequence[StoredFile], current: tuple[str, str] | None, dropped: set[str]
) -> set[tuple[str, str]]:
    """Return plans of runs that did not reach their end and may be continued.

    On a local disk those are the plans written since the current version's. Object storage keeps no order
    of writing: there, all are taken for such that no dropped version was made from.
    """
    written = {match.groups(): file.version for file in files if (match := _PLAN.fullmatch(file.path))}
    plans = {(spec_id, digest) for spec_id, digest in written}
    if output.local_path("") is None or current not in written:
        return plans - _plans_of(output, files, dropped)
    return {plan for plan in plans if int(written[plan]) > int(written[current])}


def _plans_of(output: Folder, files: Sequence[StoredFile], versions: set[str]) -> set[tuple[str, str]]:
    """Return the plans that versions were made from."""
    matches = [match for file in files if (match := _PUBLISHED.fullmatch(file.path)) and match[2] in versions]
    with ThreadPoolExecutor(DELETE_THREADS) as pool:
        digests = pool.map(lambda match: output.read(match[0]).decode().partition("\n")[0], matches)
        return {(match[1], digest) for match, digest in zip(matches, digests, strict=True)}
