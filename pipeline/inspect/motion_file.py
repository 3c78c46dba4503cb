"""A motion file looked into: fields as stored, and clips, dims, rates, lengths and ranges of what can be read.

Knows no Ray or torch. Of a large file only the beginning is read.
"""

from __future__ import annotations

import io
import math
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.contract.drop_reasons import ClipError, ClipProblem
from pipeline.contract.resolve import codec_to_be, corpus_spec
from pipeline.settings.job_config import JobConfig
from pipeline.sources.clip import RawClip, clip_to_measure
from pipeline.sources.formats.arrays import HEADER_FAULTS, HEADER_READERS, ZIP_FAULTS
from pipeline.sources.registry import cut_file, format_of, read_part
from pipeline.stages.measure import UnitStatistics
from pipeline.storage import Folder, StoredFile
from pipeline.tables import open_parquet

MAX_CLIPS, MAX_BYTES = 1000, 64 << 20
"""Of a file, no more is read."""

CLIPS_KEPT = 5
_FAULTS = (ClipError, pa.ArrowException, tarfile.TarError, OSError, *HEADER_FAULTS, *ZIP_FAULTS)


@dataclass(frozen=True)
class StoredField:
    """A column, array or member as it is stored; `is_motion_like` where it may be motion."""

    name: str
    kind: str
    is_motion_like: bool = False


@dataclass
class MotionGlimpse:
    """What was found; grows clip by clip."""

    statistics: UnitStatistics = field(default_factory=lambda: UnitStatistics("", 0))
    clips: list[RawClip] = field(default_factory=list)
    """The first few."""
    problems: list[ClipProblem] = field(default_factory=list)
    """The first few."""
    is_whole: bool = True


def glimpse_of(folder: Folder, file: StoredFile, config: JobConfig) -> MotionGlimpse:
    """Return what a motion file holds, read as `stats` would.

    Raises:
        InputFormatError: its suffix is unknown.
        StorageError: storage does not answer.
    """
    codec = codec_to_be(config)
    corpus = corpus_spec(config, codec, batch_size=1)
    found = MotionGlimpse()
    num_clips = num_bytes = 0
    for part in cut_file(folder, "", file, corpus):
        for raw in read_part(folder, part, corpus, codec):
            if num_clips == MAX_CLIPS or num_bytes >= MAX_BYTES:
                found.is_whole = False
                return found
            clip = raw if isinstance(raw, ClipProblem) else clip_to_measure(raw, corpus, None)
            num_clips += 1
            if isinstance(clip, ClipProblem):
                found.statistics.drops[clip.reason.value] += 1
                if len(found.problems) < CLIPS_KEPT:
                    found.problems.append(clip)
                continue
            num_bytes += clip.motion.nbytes
            found.statistics.tally(clip.motion.shape[1]).add(clip)
            if len(found.clips) < CLIPS_KEPT:
                found.clips.append(clip)
    return found


def stored_fields(folder: Folder, path: str, config: JobConfig) -> list[StoredField]:
    """Return what a motion file stores under which name; empty where that cannot be read."""
    kind = format_of(path, config.input.format)
    readers = {
        "parquet": _columns,
        "webdataset": _members,
        "npz": _arrays,
        "npy": _array,
        "lmdb": _arrays_of_first_value,
    }
    try:
        return list(readers[kind](folder, path)) if kind in readers else []
    except _FAULTS:
        return []


def _columns(folder: Folder, path: str) -> Iterator[StoredField]:
    with folder.open(path) as file:
        parquet = open_parquet(file)
        yield StoredField("rows", f"{parquet.metadata.num_rows:,} in {parquet.metadata.num_row_groups} groups")
        for column in parquet.schema_arrow:
            yield StoredField(column.name, str(column.type), _is_numbers(column.type))


def _is_numbers(kind: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list:
        return False
    return bool(pa.types.is_floating(kind.value_type)) or _is_numbers(kind.value_type)


def _members(folder: Folder, path: str) -> Iterator[StoredField]:
    """Yield the members of the first sample."""
    with folder.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        first = ""
        for member in tar:
            key, _, rest = member.name.partition(".")
            first = first or key
            if key != first:
                return
            yield StoredField(rest, f"{member.size:,} bytes", rest.endswith(".npy"))


def _arrays(folder: Folder, path: str) -> Iterator[StoredField]:
    with folder.open(path) as file:
        yield from _arrays_in(file)


def _arrays_of_first_value(folder: Folder, path: str) -> Iterator[StoredField]:
    from pipeline.sources.formats.lmdb import first_value

    yield from _arrays_in(io.BytesIO(first_value(folder, path)))


def _arrays_in(file: BinaryIO) -> Iterator[StoredField]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                yield _field_of_npy(info.filename.removesuffix(".npy"), io.BytesIO(member.read(4096)))


def _array(folder: Folder, path: str) -> Iterator[StoredField]:
    with folder.open(path) as file:
        yield _field_of_npy("array", io.BytesIO(file.read(4096)))


def _field_of_npy(name: str, head: io.BytesIO) -> StoredField:
    version = np.lib.format.read_magic(head)
    if version not in HEADER_READERS:
        return StoredField(name, f"npy version {version}")
    shape, _, dtype = HEADER_READERS[version](head)
    is_motion_like = len(shape) == 2 and dtype.kind == "f" and math.prod(shape) > 0
    return StoredField(name, f"{dtype} {shape}", is_motion_like)
