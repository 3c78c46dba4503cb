"""A dataset against its own promises: every expected window exactly once, every checksum.

Plan proves units, ledgers prove clips and windows, rows prove windows. Knows no Ray or torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract.drop_reasons import DropReason
from pipeline.contract.windows import window_starts
from pipeline.dataset.manifest import Manifest, OtherFile, ShardFile, read_manifest, version_path
from pipeline.dataset.paths import WINDOW_INDEX_PATH
from pipeline.dataset.token_store import TokenStore, damaged_units
from pipeline.errors import IncompleteError, OutputMismatchError, VerifyError
from pipeline.export.index import count_clips
from pipeline.export.publish import ALWAYS_WRITTEN
from pipeline.export.selection import starts_passing
from pipeline.hashing import digest_of
from pipeline.plan.plan import units_digest
from pipeline.settings.where import Where
from pipeline.storage import Folder
from pipeline.tables import read_table
from pipeline.verify.shard_content import ShardContent, content_of_parquet, content_of_tar, window_sum

MAX_FINDINGS = 100
VERIFY_THREADS = 4


@dataclass
class Findings:
    """What is wrong, in words; grows while a dataset is read."""

    lines: list[str] = field(default_factory=list)
    num_findings: int = 0

    def add(self, line: str) -> None:
        """Note a finding; the first hundred are kept in words."""
        self.num_findings += 1
        if len(self.lines) < MAX_FINDINGS:
            self.lines.append(line)


@dataclass(frozen=True)
class Verified:
    """The result of a verification."""

    findings: Sequence[str]
    num_findings: int
    num_files: int
    num_windows: int
    units_proved: bool
    notes: Sequence[str] = ()
    """What a person should know of a dataset that may be sound."""

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found wrong."""
        return self.num_findings == 0


@dataclass
class _Found:
    """What the shards of one format hold of a clip: where it begins, its windows, the sum of their hashes."""

    shard: int
    row: int
    count: int = 0
    total: int = 0


def verify_dataset(output: Folder, manifest: Manifest, on_file: Callable[[str], None]) -> Verified:
    """Check a published dataset completely.

    Args:
        on_file: told every file before it is read.

    Raises:
        StorageError: storage did not answer after all retries.
    """
    findings = Findings()
    contents: dict[str, bytes] = {}
    is_kept = output.stat(f"versions/{manifest.version}.json") is not None
    if not is_kept:
        findings.add(f"dataset.json: altered, or its copy versions/{manifest.version}.json is missing")
    for other in manifest.files:
        on_file(other.path)
        path = version_path(manifest.version, other.path) if is_kept else other.path
        data = _read_checked(output, path, other.bytes, other.sha256, findings)
        if data is not None:
            contents[other.path] = data
    notes = _prove_names(output, manifest, findings) if is_kept else []
    clips = _table(contents.get("index/clips.parquet"))
    units = _table(contents.get("index/units.parquet"))
    units_proved = False
    if clips is None or units is None:
        findings.add("index: clips.parquet or units.parquet is missing or altered, so windows cannot be proved")
    else:
        _prove_manifest(manifest, clips, _table(contents.get("quarantine.parquet")), findings)
        units_proved = _prove_units(output, manifest, clips, units, findings)
        _prove_rows(output, manifest, clips, findings, on_file)
    num_files = len(manifest.files) + sum(len(shards) for shards in manifest.shards.values())
    return Verified(findings.lines, findings.num_findings, num_files, manifest.num_windows, units_proved, notes)


def _prove_names(output: Folder, manifest: Manifest, findings: Findings) -> list[str]:
    """Compare the files beside the shards, under their own names, with what the current version keeps of them.

    Returns:
        A note for each that is of another version: the publication of that one was interrupted.
    """
    current = read_manifest(output)
    if current is None or current.version != manifest.version:
        return []
    notes: list[str] = []
    for file in manifest.files:
        quiet = Findings()
        if _read_checked(output, file.path, file.bytes, file.sha256, quiet) is not None:
            continue
        if _is_of_another_version(output, file):
            notes.append(
                f"{file.path} is of a version whose publication was interrupted; the dataset's own stands in"
                f" {version_path(manifest.version, file.path)}: run the same command again"
            )
        else:
            findings.add(quiet.lines[0])
    return notes


def _is_of_another_version(output: Folder, file: OtherFile) -> bool:
    standing = output.stat(file.path)
    if standing is None:
        return False
    data = output.read(file.path)
    for name in output.list_names("versions"):
        copy = output.stat(version_path(name, file.path)) if not name.endswith(".json") else None
        if copy and copy.num_bytes == len(data) and output.read(version_path(name, file.path)) == data:
            return True
    return False


def _prove_manifest(manifest: Manifest, clips: pa.Table, quarantined: pa.Table | None, findings: Findings) -> None:
    """Compare what dataset.json says with itself and with the index."""
    promised = set(ALWAYS_WRITTEN)
    if manifest.export["shuffle"] != "none":
        promised.add(WINDOW_INDEX_PATH)
    promised |= {f"webdataset/{shard.split}/shards.txt" for shard in manifest.shards.get("webdataset", ())}
    counted = count_clips(clips, manifest.contract.codec.fps, manifest.counts.get("units", 0))
    says = {
        "spec_id": (manifest.spec_id, manifest.contract.spec.spec_id),
        "export_id": (manifest.export_id, digest_of(manifest.export)),
        "formats": (sorted(manifest.shards), sorted(manifest.export["formats"])),
        "files": (sorted(file.path for file in manifest.files), sorted(promised)),
        "counts": (manifest.counts, counted.counts),
        "drops": (manifest.drops, counted.drops),
        "splits": (manifest.splits, counted.splits),
    }
    for field_name, (found, wanted) in says.items():
        if found != wanted:
            findings.add(f"dataset.json: {field_name} is {found}, its own parts say {wanted}")
    dropped = clips.filter(pc.not_equal(clips["drop_reason"], ""))
    if quarantined is not None and quarantined["reason"].to_pylist() != dropped["drop_reason"].to_pylist():
        findings.add("quarantine.parquet: does not hold the dropped clips of index/clips.parquet")


def _prove_units(output: Folder, manifest: Manifest, clips: pa.Table, units: pa.Table, findings: Findings) -> bool:
    """Compare plan, fragments and ledgers with the index; return whether the store was at hand."""
    keys = units["unit_key"].to_pylist()
    if units_digest(keys) != manifest.plan:
        findings.add("index/units.parquet: units are not those of the plan that dataset.json names")
    if pc.sum(units["num_windows"]).as_py() != pc.sum(clips["num_windows"]).as_py():
        findings.add("index: units and clips disagree about the number of windows")
    store = TokenStore.of(output, manifest.spec_id)
    if store.read_contract() is None:
        return False
    try:
        plan = store.plan_of_version(manifest.version)
    except OutputMismatchError as error:
        findings.add(str(error))
        return True
    committed = store.list_fragments()
    if [unit.key for unit in plan.units] != keys:
        findings.add("index/units.parquet: units differ from the plan in the token store")
    expected = [unit for unit in plan.units if (unit.key, unit.stamp) in committed]
    for unit in plan.units:
        if (unit.key, unit.stamp) not in committed:
            findings.add(f"token store: unit {unit.key} ({unit.parts[0].path}) has no fragment")
    first_clip = dict(zip(keys, np.cumsum(units["num_clips"].to_numpy()) - units["num_clips"].to_numpy(), strict=True))
    num_clips = dict(zip(keys, units["num_clips"].to_pylist(), strict=True))
    damaged = damaged_units(store, expected)
    for unit in damaged:
        findings.add(
            f"token store: {store.fragment_path(unit.key, unit.stamp)} of {unit.parts[0].path} is damaged:"
            " delete it, then run the same tokenize command again"
        )
    for unit in expected:
        if unit in damaged:
            continue
        try:
            ledger = store.read_ledger(unit.key, unit.stamp)
        except (VerifyError, IncompleteError) as error:
            findings.add(str(error))
            continue
        mine = clips.slice(first_clip.get(unit.key, 0), num_clips.get(unit.key, 0))
        if not _is_of_ledger(mine, ledger, is_filtered=bool({"where", "clips"} & set(manifest.export))):
            findings.add(f"index/clips.parquet: clips of unit {unit.key} ({unit.parts[0].path}) differ from its ledger")
    return True


def _is_of_ledger(clips: pa.Table, ledger: pa.Table, is_filtered: bool) -> bool:
    """Return whether the index says of a unit's clips what its ledger says; a filter may have left windows out."""
    if clips.num_rows != ledger.num_rows:
        return False
    same = all(clips[name].combine_chunks() == ledger[name].combine_chunks() for name in ("source", "num_frames"))
    were_dropped_later = clips["drop_reason"].to_numpy(zero_copy_only=False) == DropReason.DUPLICATE_ID.value
    held, made = clips["num_windows"].to_numpy(), ledger["num_windows"].to_numpy()
    windows = held <= made if is_filtered else held == made
    return same and bool((windows | were_dropped_later).all())


def _prove_rows(
    output: Folder, manifest: Manifest, clips: pa.Table, findings: Findings, on_file: Callable[[str], None]
) -> None:
    """Read every shard and compare the windows found with the windows the ledgers promise."""
    kept = clips.filter(pc.greater(clips["num_windows"], 0))
    split_of_clip = dict(zip(kept["clip_id"].to_pylist(), kept["split"].to_pylist(), strict=True))
    by_format: dict[str, list[ShardContent | None]] = {}
    for name, shards in manifest.shards.items():
        found: dict[str, _Found] = {}
        by_format[name] = []
        contents = _contents(output, name, manifest, findings)
        for shard_index, (shard, content) in enumerate(zip(shards, contents, strict=True)):
            on_file(shard.path)
            by_format[name].append(content)
            if content is None:
                continue
            columns = (content.clip_ids, content.first_rows, content.num_windows, content.window_sums)
            for clip_id, row, count, total in zip(*columns, strict=True):
                if split_of_clip.get(clip_id) != shard.split:
                    findings.add(f"{shard.path}: clip {clip_id!r} does not belong to split {shard.split}")
                clip = found.setdefault(clip_id, _Found(shard_index, int(row)))
                clip.count += int(count)
                clip.total = (clip.total + int(total)) % 2**64
        if None in by_format[name]:
            findings.add(f"{name}: windows cannot be counted while a shard is missing or altered; run tokenize again")
            continue
        if manifest.export["shuffle"] == "none":
            _compare_places(name, kept, found, findings)
        _compare_windows(name, kept, found, manifest, findings)
    _compare_formats(manifest, by_format, findings)


def _compare_places(name: str, kept: pa.Table, found: dict[str, _Found], findings: Findings) -> None:
    columns = (kept["clip_id"].to_pylist(), kept["first_shard"].to_pylist(), kept["first_row"].to_pylist())
    for clip_id, shard, row in zip(*columns, strict=True):
        clip = found.get(clip_id)
        if clip is not None and (clip.shard, clip.row) != (shard, row):
            findings.add(
                f"index/clips.parquet: {name} windows of clip {clip_id!r} begin in shard {clip.shard}, row {clip.row},"
                f" not {shard}, {row}"
            )


def _compare_windows(
    name: str, kept: pa.Table, found: dict[str, _Found], manifest: Manifest, findings: Findings
) -> None:
    contract, where = manifest.contract, Where(manifest.export.get("where", ""))
    window_frames, rule = contract.codec.window_frames, contract.corpus.window
    columns = (kept[column].to_pylist() for column in ("clip_id", "source", "num_frames", "num_windows"))
    is_alike = not rule.phases and not where.text

    @lru_cache(None if is_alike else 0)
    def promised(clip_id: str, source: str, num_frames: int) -> tuple[int, int]:
        """Return how many windows a clip's length promises, and the sum of their hashes."""
        starts = window_starts(clip_id, num_frames, window_frames, rule)
        starts = starts_passing(where, starts, num_frames, source, window_frames)
        return len(starts), window_sum(starts, num_frames, window_frames)

    for clip_id, source, num_frames, num_windows in zip(*columns, strict=True):
        clip = found.pop(clip_id, _Found(-1, -1))
        if clip.count != num_windows:
            what = "missing" if clip.count < num_windows else "too many"
            findings.add(f"{name}: clip {clip_id!r} has {clip.count} windows of {num_windows}: {what}")
            continue
        # a clip renamed by `duplicate_ids: suffix` had its windows planned under the id before the suffix
        bases = {clip_id, clip_id.rpartition("~")[0] or clip_id} if rule.phases else {clip_id}
        of_clip = [("", "")] if is_alike else [(base, source) for base in bases]
        if not any(promised(*names, num_frames) == (clip.count, clip.total) for names in of_clip):
            findings.add(f"{name}: clip {clip_id!r} has the right number of windows, but not the right ones")
    for clip_id in found:
        findings.add(f"{name}: clip {clip_id!r} is in the shards, but not in index/clips.parquet")


def _compare_formats(manifest: Manifest, by_format: dict[str, list[ShardContent | None]], findings: Findings) -> None:
    if len(by_format) < 2:
        return
    (first, ours), (second, theirs) = by_format.items()
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one and other and one.rows_digest != other.rows_digest:
            paths = manifest.shards[first][index].path, manifest.shards[second][index].path
            findings.add(f"{paths[0]} and {paths[1]} do not hold the same windows and bits in the same order")
    if len(ours) != len(theirs):
        findings.add(f"dataset.json: {len(ours)} {first} shards, but {len(theirs)} {second} shards")


def _contents(output: Folder, name: str, manifest: Manifest, findings: Findings) -> Iterator[ShardContent | None]:
    """Yield what each shard of a format holds, None where it cannot be read, a few read ahead."""
    contract, shards = manifest.contract, manifest.shards[name]

    def read(shard: ShardFile) -> ShardContent | None:
        data = _read_checked(output, shard.path, shard.bytes, shard.sha256, findings)
        if data is None:
            return None
        try:
            is_parquet = name == "parquet"
            content = content_of_parquet(data, contract) if is_parquet else content_of_tar(data, shard, contract)
        except (VerifyError, pa.ArrowInvalid, OSError, ValueError) as error:
            findings.add(f"{shard.path}: {error}")
            return None
        if content.num_windows.sum() != shard.windows:
            findings.add(f"{shard.path}: {content.num_windows.sum()} windows, dataset.json says {shard.windows}")
        return content

    with ThreadPoolExecutor(VERIFY_THREADS) as pool:
        for first in range(0, len(shards), VERIFY_THREADS):
            yield from pool.map(read, shards[first : first + VERIFY_THREADS])


def _read_checked(output: Folder, path: str, num_bytes: int, sha256: str, findings: Findings) -> bytes | None:
    try:
        data = output.read(path)
    except FileNotFoundError:
        findings.add(f"{path}: missing")
        return None
    if len(data) != num_bytes or hashlib.sha256(data).hexdigest() != sha256:
        findings.add(f"{path}: altered: {len(data)} bytes, and not the bytes that dataset.json names")
        return None
    return data


def _table(data: bytes | None) -> pa.Table | None:
    return None if data is None else read_table(data)
