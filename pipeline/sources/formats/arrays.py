"""npz and npy: one file is one clip. The only place that decodes numpy's array format, tars included.

Nothing is ever unpickled, and no header is believed before the bytes are there.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.contract.specs import CorpusSpec
from pipeline.sources.clip import ClipFields, Part, RawClip, clip_fields, fps_field, raw_clip
from pipeline.sources.limits import MAX_CLIP_BYTES, clip_bytes_fault, growth_fault
from pipeline.sources.stored_audio import StoredAudio
from pipeline.storage import Folder, StoredFile

_NUM_SHOWN = 20

HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
HEADER_FAULTS = (
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    tokenize.TokenError,
)
ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OverflowError)


def cut_arrays(whole: Part, file: StoredFile) -> list[Part]:
    """Return the one part of an npz or npy file; of one that is too large for a clip, no more is asked for."""
    if file.num_bytes <= MAX_CLIP_BYTES:
        return [whole]
    return [Part(whole.input_name, whole.path, whole.format, 0, MAX_CLIP_BYTES)]


def read_arrays(folder: Folder, part: Part, corpus: CorpusSpec) -> Iterator[RawClip | ClipProblem]:
    """Yield the one clip of an npz or npy file, or its problem.

    Raises:
        FileNotFoundError: the file is gone.
        StorageError: storage does not answer.
    """
    if part.stop is not None:
        detail = f"the file has more than {part.stop} bytes, one clip has at most so many: cut it into several"
        yield part.problem(part.stem, "", DropReason.UNREADABLE, detail)
        return
    data = folder.read(part.path)
    try:
        if part.format == "npy":
            motion, fields = array_from_npy(data), clip_fields({}, corpus, _audio({}, folder, part, corpus))
        else:
            motion, fields = clip_of_npz(data, folder, part, corpus)
    except ClipError as error:
        yield part.problem(part.stem, "", error.reason, error.detail)
        return
    yield raw_clip(part, "", part.stem, motion, fields, corpus)


def clip_of_npz(
    data: bytes, folder: Folder, part: Part, corpus: CorpusSpec, motion_fields: tuple[str, ...] = ()
) -> tuple[npt.NDArray[Any], ClipFields]:
    """Return motion of an npz archive's bytes, and what stands beside it.

    Args:
        motion_fields: names of the motion, the first one that is there counts; empty: the configured one.

    Raises:
        ClipError: no archive, no motion, or an array that cannot be read.
    """
    names = motion_fields or (corpus.motion_field,)
    audio = {corpus.audio.field} if corpus.audio is not None else set()
    carried = {column.name for column in corpus.carry}
    plain = {corpus.clip_id_field or "clip_id", fps_field(corpus) or "fps"}
    arrays = _read_archive(data, names, plain | carried | audio)
    motion = next(arrays[name] for name in names if name in arrays)
    fields = {name: _scalar(value) if name in plain else value for name, value in arrays.items()}
    return motion, clip_fields(fields, corpus, _audio(arrays, folder, part, corpus))


def array_from_npy(data: bytes) -> npt.NDArray[Any]:
    """Return the array of an npy file's bytes without copying them.

    Raises:
        ClipError: no npy, an object array, or fewer bytes than its header promises.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in HEADER_READERS:
            raise ClipError(DropReason.UNREADABLE, f"npy version {version} is not read")
        shape, is_fortran, dtype = HEADER_READERS[version](stream)
        wanted, start = math.prod(shape) * dtype.itemsize, stream.tell()
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ClipError(DropReason.UNREADABLE, f"wanted an array of numbers, found {dtype} {shape}")
        if len(data) - start < wanted:
            detail = f"the header promises {wanted} bytes of {dtype} {shape}, found {len(data) - start}"
            raise ClipError(DropReason.TRUNCATED, detail)
        flat = np.frombuffer(data, dtype, math.prod(shape), start) if wanted else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except HEADER_FAULTS as error:
        raise ClipError(DropReason.UNREADABLE, f"no npy array: {error}") from error


def empty_like_npy(head: bytes) -> npt.NDArray[Any]:
    """Return an array of two elements with type and number of axes of the npy file that begins with these bytes.

    Raises:
        ClipError: it is none, or holds no numbers.
    """
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = HEADER_READERS[version](stream)
    except (*HEADER_FAULTS, KeyError) as error:
        raise ClipError(DropReason.UNREADABLE, f"no npy array: {error}") from error
    if dtype.hasobject:
        raise ClipError(DropReason.UNREADABLE, f"wanted an array of numbers, found {dtype} {shape}")
    return np.zeros((2,) + (1,) * (len(shape) - 1), dtype) if shape else np.zeros((), dtype)


def _read_archive(data: bytes, motion_fields: tuple[str, ...], others: Collection[str]) -> dict[str, Any]:
    """Return every name of an npz archive with the array of the motion and of the others wanted, None elsewhere."""
    is_zip = data[:4] == b"PK\x03\x04"
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except ZIP_FAULTS as error:
        reason = DropReason.TRUNCATED if is_zip else DropReason.UNREADABLE
        raise ClipError(reason, f"no npz archive: {error}") from error
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    motion_field = next((name for name in motion_fields if name in members), None)
    if motion_field is None:
        found = ", ".join(sorted(members)[:_NUM_SHOWN]) or "none"
        names = " or ".join(repr(name) for name in motion_fields)
        raise ClipError(DropReason.MISSING_FIELD, f"no key {names}, found: {found}")
    arrays: dict[str, Any] = dict.fromkeys(members)
    wanted = sorted({motion_field, *others} & set(members))
    arrays.update({name: _read_member(archive, members[name]) for name in wanted})
    return arrays


def _audio(arrays: dict[str, Any], folder: Folder, part: Part, corpus: CorpusSpec) -> StoredAudio | None:
    return None if corpus.audio is None else StoredAudio(arrays.get(corpus.audio.field), folder, part)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ClipError(DropReason.UNREADABLE, f"{info.filename} is compressed in a way numpy does not write")
    fault = clip_bytes_fault(info.filename, info.file_size)
    fault = fault or growth_fault(info.filename, info.file_size, info.compress_size)
    if fault:
        raise ClipError(DropReason.UNREADABLE, fault)
    try:
        with archive.open(info) as member:
            # a size is named, since zipfile inflates up to 2 GiB at once where none is
            return array_from_npy(member.read(info.file_size))
    except ZIP_FAULTS as error:
        raise ClipError(DropReason.UNREADABLE, f"{info.filename}: {error}") from error


def _scalar(value: Any) -> Any:
    """Return the one element of an array as a Python value; other values as they are."""
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
