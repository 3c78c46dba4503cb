"""WebDataset tars: neighbours of one key are a sample, a sample is a clip. Streams; never extracts to disk.

Knows the tar's order and names; array bytes go to arrays.py.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.contract.specs import CorpusSpec
from pipeline.sources.clip import Part, RawClip, clip_fields, raw_clip
from pipeline.sources.formats.arrays import array_from_npy
from pipeline.sources.limits import MAX_HEADER_BYTES, MAX_JSON_BYTES, clip_bytes_fault
from pipeline.sources.stored_audio import StoredAudio
from pipeline.storage import Folder

Member = tarfile.TarInfo
_NUM_SHOWN = 20

_TAR_FAULTS = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True)
class _Tar:
    """An opened tar, the folder it lies in, and the part of it that is read: built by `read_webdataset`."""

    file: BinaryIO
    folder: Folder
    part: Part


def cut_webdataset(folder: Folder, whole: Part, corpus: CorpusSpec) -> list[Part]:
    """Return parts of about `unit_bytes` that begin and end between samples; headers alone are read.

    Of a damaged tar the part before the damage reaches to the end, so that its reader reports it.
    """
    starts = [0]
    with folder.open(whole.path) as file:
        try:
            for index, (_, members) in enumerate(itertools.groupby(_members(file, whole), _key)):
                offset = next(members).offset
                if index and offset - starts[-1] >= corpus.unit_bytes:
                    starts.append(offset)
        except ClipError:
            pass
    if len(starts) == 1:
        return [whole]
    return [
        Part(whole.input_name, whole.path, whole.format, start, stop)
        for start, stop in itertools.pairwise([*starts, None])
    ]


def read_webdataset(folder: Folder, part: Part, corpus: CorpusSpec) -> Iterator[RawClip | ClipProblem]:
    """Yield the clips of a part in its order; at damage one problem, and nothing after it.

    Where damage follows a sample directly, more of its members may be lost: it is left out with the rest.

    Raises:
        FileNotFoundError: the file is gone.
        StorageError: storage does not answer.
    """
    seen: set[str] = set()
    with folder.open(part.path) as file:
        try:
            for key, members in itertools.groupby(_members(file, part), _key):
                found = list(members)
                sample = {member.name.removeprefix(key)[1:]: member for member in found}
                # Members that stand apart from their sample, without motion, are no clip of their own.
                if key in seen and not any(name.endswith("npy") for name in sample):
                    continue
                seen.add(key)
                yield _fault(part, key, found, sample) or _clip(_Tar(file, folder, part), key, sample, corpus)
        except ClipError as error:
            yield part.problem(part.stem, "", error.reason, error.detail)


def _fault(part: Part, key: str, members: Sequence[Member], sample: dict[str, Member]) -> ClipProblem | None:
    """Return what is wrong with the members of a sample as such: links, or two of one name."""
    link = next((member for member in members if not member.isreg()), None)
    if link is not None:
        detail = f"member {link.name} is a link or device: pack the files themselves"
    elif any(member.issparse() for member in members):
        detail = "a member is stored sparse, with its zeros left out: pack without --sparse"
    elif len(sample) < len(members):
        detail = f"{len(members)} members of {len(sample)} names: give each sample a key of its own"
    else:
        return None
    return part.problem(f"{part.stem}#{key}", f"sample {key}", DropReason.UNREADABLE, detail)


def _clip(tar: _Tar, key: str, sample: dict[str, Member], corpus: CorpusSpec) -> RawClip | ClipProblem:
    """Return the clip of a sample, given its members by extension."""
    part = tar.part
    default_id = f"{part.stem}#{key}"
    extension = next((name for name in (f"{corpus.motion_field}.npy", "npy") if name in sample), None)
    where = f"member {sample[extension].name}" if extension else f"sample {key}"
    try:
        if extension is None:
            found = ", ".join(sorted(sample)[:_NUM_SHOWN])
            detail = f"no member .{corpus.motion_field}.npy or .npy, found: {found}"
            raise ClipError(DropReason.MISSING_FIELD, detail)
        tree = json_fields(tar.file, sample["json"]) if "json" in sample else {}
        fields = clip_fields(tree, corpus, _audio(tar, sample, tree, corpus))
        motion = array_from_npy(_bytes_of(tar.file, sample[extension]))
    except ClipError as error:
        return part.problem(default_id, where, error.reason, error.detail)
    return raw_clip(part, where, default_id, motion, fields, corpus)


def _audio(tar: _Tar, sample: dict[str, Member], tree: dict[str, Any], corpus: CorpusSpec) -> StoredAudio | None:
    """Return a sample's sound: a member named as the field, a wav or flac one, else what its .json says."""
    if corpus.audio is None:
        return None
    name = corpus.audio.field
    found = next((item for item in (f"{name}.npy", *sound_members(name)) if item in sample), None)
    if found is None:
        return StoredAudio(tree.get(name), tar.folder, tar.part)
    data = _bytes_of(tar.file, sample[found])
    return StoredAudio(array_from_npy(data) if found.endswith(".npy") else data, tar.folder, tar.part)


def sound_members(name: str) -> tuple[str, ...]:
    """Return the extensions that a sample's sound may have as a file of its own, the first one found counts."""
    return (f"{name}.wav", f"{name}.flac", "wav", "flac")


def sample_members(file: BinaryIO, part: Part) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield key and members by extension of every sample of a part, until the tar ends or is damaged."""
    try:
        for key, members in itertools.groupby(_members(file, part), _key):
            yield key, {member.name.removeprefix(key)[1:]: member for member in members}
    except ClipError:
        return


def _members(file: BinaryIO, part: Part) -> Iterator[Member]:
    """Yield the files of a part that have a key and an extension.

    Raises:
        ClipError: the tar ends early, perhaps inside the last member given, or a header is damaged.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    at = file.seek(part.start or 0)
    try:
        headers: Any = _HeaderFile(file)
        tar: Any = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 (the file is the caller's)
        while part.stop is None or at < part.stop:
            member = tar.next()
            if member is None:
                return _check_end(file, at)
            at = tar.offset
            tar.members.clear()
            if _key(member) and not member.isdir():
                yield member
            if member.size < 0 or member.offset_data + member.size > file_bytes:
                detail = f"member {member.name} of {member.size} bytes goes beyond the end at {file_bytes}"
                raise ClipError(DropReason.TRUNCATED, detail)
    except _TAR_FAULTS as error:
        raise ClipError(_damage(file, at), f"byte {at}: {error}") from error


class _HeaderFile:
    """A tar as its parser sees it: built and dropped by `_members`; gives headers and nothing as large as a file."""

    name = ""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {num_bytes} bytes for a name or its like")
        return self._file.read(num_bytes)


def _check_end(file: BinaryIO, at: int) -> None:
    """Raise ClipError unless the zeros that end a tar stand at byte `at`."""
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ClipError(DropReason.TRUNCATED, f"the tar ends at byte {at + len(block)} without its end mark")
    if any(block):
        raise ClipError(DropReason.UNREADABLE, f"byte {at}: no tar header; what follows is lost")


def _damage(file: BinaryIO, at: int) -> DropReason:
    file.seek(at)
    is_short = len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE
    return DropReason.TRUNCATED if is_short else DropReason.UNREADABLE


def _key(member: Member) -> str:
    """Return the name up to the first dot of its last part, as the webdataset library does; "" without one."""
    folder, slash, basename = member.name.rpartition("/")
    stem, dot, _ = basename.partition(".")
    return f"{folder}{slash}{stem}" if stem and dot else ""


def _bytes_of(file: BinaryIO, member: Member) -> bytes:
    fault = clip_bytes_fault(member.name, member.size)
    if fault:
        raise ClipError(DropReason.UNREADABLE, fault)
    file.seek(member.offset_data)
    return file.read(member.size)


def member_head(file: BinaryIO, member: Member, num_bytes: int) -> bytes:
    """Return the first bytes of a member."""
    file.seek(member.offset_data)
    return file.read(min(member.size, num_bytes))


def json_fields(file: BinaryIO, member: Member) -> dict[str, Any]:
    """Return what the .json of a sample holds, nothing where it is no mapping.

    Raises:
        ClipError: it is too large, or no JSON.
    """
    if member.size > MAX_JSON_BYTES:
        detail = f"the sample's .json has {member.size} bytes, at most {MAX_JSON_BYTES} are read"
        raise ClipError(DropReason.UNREADABLE, detail)
    try:
        tree = json.loads(_bytes_of(file, member))
    except (ValueError, RecursionError) as error:
        raise ClipError(DropReason.UNREADABLE, f"the sample's .json: {error}") from error
    return tree if isinstance(tree, dict) else {}
