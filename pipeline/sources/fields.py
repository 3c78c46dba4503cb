"""Which fields the inputs hold beside motion, and of which kind: a look at some files before any work.

Reads headers, and the first samples of tars. Knows no clip.
"""

from __future__ import annotations

import difflib
import io
import itertools
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from pipeline.contract.carried import fields_to_carry, kind_of_type, kind_of_value
from pipeline.contract.drop_reasons import ClipError
from pipeline.contract.schema import CarriedKind
from pipeline.errors import ConfigError
from pipeline.settings.job_config import InputConfig
from pipeline.sources.audio import require_soundfile
from pipeline.sources.clip import Part
from pipeline.sources.formats.arrays import ZIP_FAULTS, array_from_npy, empty_like_npy
from pipeline.sources.formats.webdataset import json_fields, member_head, sample_members
from pipeline.sources.registry import format_of
from pipeline.storage import Folder, InputRoot
from pipeline.tables import metadata_of, read_footer

MAX_FILES = 1000
"""Files of an input that are looked at for a field that none had so far."""

FILES_AT_ONCE = 8
SAMPLES_SEEN = 8
"""Of each tar."""

BARE_SOUNDS = ("wav", "flac")

_HEAD_BYTES = 4096

UNFIT = "unfit"
"""Kind of values that no column can carry."""

Fields = dict[str, str | None]
"""Name -> kind as in schema.py, or `UNFIT`; None where no value was met."""

_FAULTS = (ClipError, pa.ArrowException, OSError, *ZIP_FAULTS)


def carried_kinds(
    roots: Sequence[InputRoot], config: InputConfig, max_files: int = MAX_FILES
) -> dict[str, CarriedKind]:
    """Return the kind of each field that `input.carry` names, as the first files that have it say.

    Whole numbers in one file and others in the next make floating numbers. A field of which no value was met is text.
    A kind that `input.carry` names stands, whatever the files say.

    Args:
        max_files: of an input that are looked at for a field that none had so far.

    Raises:
        ConfigError: an input has no file with such a field, or with that of `input.audio`; no column can carry it; its
            kind is unknown; or sound cannot be read here.
        StorageError: storage does not answer.
    """
    wanted = fields_to_carry(config.carry)
    kinds: dict[str, set[str | None]] = {name: set() for name in wanted}
    sounds: set[str | None] = set()
    for root in roots if wanted or config.audio.field else ():
        seen = _look(root, config, wanted, max_files)
        for name in wanted:
            if name not in seen:
                raise _unknown(root, "input.carry", name, seen, max_files)
            kinds[name] |= seen[name]
        if config.audio.field is not None:
            found = _sound_kinds(seen, config.audio.field)
            if not found:
                raise _unknown(root, "input.audio.field", config.audio.field, seen, max_files)
            sounds |= found
    is_plain = all(str(kind).startswith("list") for kind in sounds) and config.audio.mode == "cut"
    if sounds and not (is_plain and config.audio.encoding == "int16"):
        require_soundfile("input.audio, unless it is arrays that are kept as int16,")
    return {name: wanted[name] or _widest(name, found) for name, found in kinds.items()}


def fields_of(folder: Folder, path: str, file_format: str) -> Fields:
    """Return the fields of a file; those met so far where it is damaged, which its reader will report.

    Raises:
        FileNotFoundError, StorageError: it cannot be read.
    """
    readers: dict[str, Callable[[Folder, str], Iterator[tuple[str, str | None]]]] = {
        "parquet": _columns,
        "webdataset": _members,
        "npz": _arrays,
        "lmdb": _arrays_of_first_value,
    }
    found: Fields = {}
    if file_format in readers:
        try:
            for name, kind in readers[file_format](folder, path):
                found[name] = found.get(name) or kind
        except _FAULTS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
    return found


def _look(root: InputRoot, config: InputConfig, wanted: Collection[str], max_files: int) -> dict[str, set[str | None]]:
    """Return the fields that files of an input have, until each wanted one was met."""
    seen: dict[str, set[str | None]] = {}
    files = sorted(file.path for file in root.files)[:max_files]

    def read(path: str) -> Fields:
        return fields_of(root.folder, path, format_of(path, config.format))

    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for first in range(0, len(files), FILES_AT_ONCE):
            for fields in pool.map(read, files[first : first + FILES_AT_ONCE]):
                for name, kind in fields.items():
                    seen.setdefault(name, set()).add(kind)
            has_sound = config.audio.field is None or _sound_kinds(seen, config.audio.field)
            if has_sound and all(name in seen for name in wanted):
                break
    return seen


def _sound_kinds(seen: Mapping[str, set[str | None]], field: str) -> set[str | None]:
    """Return the kinds of a field with sound, whose name the members .wav and .flac of a tar need not have."""
    return set().union(*(seen.get(name, set()) for name in (field, *BARE_SOUNDS)))


def _widest(name: str, found: set[str | None]) -> CarriedKind:
    kinds = {kind for kind in found if kind is not None}
    for fit, among in _WIDER:
        if kinds <= among:
            return fit
    if UNFIT in kinds:
        raise ConfigError(f"input.carry: {name!r} is no text, number, truth value or list of numbers: leave it out")
    raise ConfigError(
        f"input.carry: {name!r} is of several kinds ({', '.join(sorted(kinds))}): make it one, or name the one"
        f" to keep, such as {name}:string"
    )


_WIDER: tuple[tuple[CarriedKind, set[str]], ...] = (
    ("string", set()),
    ("bool", {"bool"}),
    ("int64", {"int64"}),
    ("float64", {"int64", "float64"}),
    ("string", {"int64", "string"}),
    ("list<int64>", {"list<int64>"}),
    ("list<float64>", {"list<int64>", "list<float64>"}),
)
"""The first kind that can hold all that were met."""


def _unknown(root: InputRoot, key: str, name: str, seen: Mapping[str, object], max_files: int) -> ConfigError:
    near = difflib.get_close_matches(name, seen, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"found: {', '.join(sorted(seen)[:20]) or 'no field at all'}"
    looked = f"its first {max_files} files" if len(root.files) > max_files else "its files"
    whose = f"input {root.name!r}" if root.name else "the input"
    return ConfigError(f"{key}: {whose} has no field {name!r} in any of {looked}; {hint}")


def _kind_of_column(kind: Any) -> str | None:
    return None if pa.types.is_null(kind) else kind_of_type(kind) or UNFIT


def _columns(folder: Folder, path: str) -> Iterator[tuple[str, str | None]]:
    with folder.open(path) as file:
        for column in metadata_of(read_footer(file)).schema.to_arrow_schema():
            yield column.name, _kind_of_column(column.type)
            if pa.types.is_struct(column.type):
                for inner in column.type:
                    yield f"{column.name}.{inner.name}", _kind_of_column(inner.type)


def _members(folder: Folder, path: str) -> Iterator[tuple[str, str | None]]:
    """Yield what the .json of the first samples hold, and the names of sounds beside it."""
    with folder.open(path) as file:
        for _, sample in itertools.islice(sample_members(file, Part("", path, "webdataset")), SAMPLES_SEEN):
            for extension, member in sample.items():
                stem, _, last = extension.rpartition(".")
                if last in BARE_SOUNDS:
                    yield stem or last, UNFIT
                elif last == "npy" and stem:
                    yield stem, _kind_of_npy(member_head(file, member, _HEAD_BYTES), member.size)
            if "json" in sample:
                for name, value in json_fields(file, sample["json"]).items():
                    yield name, None if value is None else kind_of_value(value) or UNFIT


def _arrays(folder: Folder, path: str) -> Iterator[tuple[str, str | None]]:
    with folder.open(path) as file:
        yield from _arrays_in(file)


def _arrays_of_first_value(folder: Folder, path: str) -> Iterator[tuple[str, str | None]]:
    from pipeline.sources.formats.lmdb import first_value

    yield from _arrays_in(io.BytesIO(first_value(folder, path)))


def _arrays_in(file: Any) -> Iterator[tuple[str, str | None]]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                yield info.filename.removesuffix(".npy"), _kind_of_npy(member.read(_HEAD_BYTES), info.file_size)


def _kind_of_npy(head: bytes, num_bytes: int) -> str:
    """Return the kind of an array, given the first bytes of its file and how many there are."""
    try:
        array = array_from_npy(head) if num_bytes <= len(head) else empty_like_npy(head)
    except ClipError:
        return UNFIT
    value = array.item() if array.size == 1 else array
    return kind_of_value(value) or UNFIT if array.ndim <= 1 else UNFIT
