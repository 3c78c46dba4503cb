"""LMDB: one key is one clip, its value an npz archive's bytes. Local, read only, without a lock.

Opens files by itself, since LMDB maps them into memory; array bytes go to arrays.py. Nothing is ever unpickled.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.contract.drop_reasons import ClipError, ClipProblem, DropReason
from pipeline.contract.specs import CorpusSpec
from pipeline.errors import InputFormatError
from pipeline.sources.clip import Part, RawClip, raw_clip
from pipeline.sources.formats.arrays import clip_of_npz
from pipeline.sources.limits import clip_bytes_fault
from pipeline.storage import Folder

DEFAULT_MOTION = ("motion", "motioncode")
"""Names of the motion where `input.motion_field` names no other."""


@dataclass
class _Opened:
    """An environment of this process, and by how many readers it is used at the moment."""

    environment: Any
    num_readers: int


_OPENED: dict[tuple[int, str], _Opened] = {}
_OPENING = threading.Lock()


@dataclass(frozen=True)
class _FileState:
    """A file as this process found it: a changed one is looked at again."""

    path: str
    inode: int
    num_bytes: int
    mtime_ns: int


def check_lmdb(folder: Folder, path: str) -> None:
    """Make sure that LMDB can be read here.

    Raises:
        InputFormatError: the extra `lmdb` is not installed, or the file is not on this machine.
    """
    if folder.local_path("") is None:
        raise InputFormatError(f"{path} in {folder}: LMDB is read from local disks only; copy it to one")
    if importlib.util.find_spec("lmdb") is None:
        raise InputFormatError(f"reading {path} needs the package lmdb: pip install 'motion-tokens[lmdb]'")


def cut_lmdb(folder: Folder, whole: Part, corpus: CorpusSpec) -> list[Part]:
    """Return parts of about `unit_bytes`: runs of keys in their order, counted from the first one.

    Sizes stand beside the keys: no value is read. A file that cannot be opened stays whole: its reader reports it.
    """
    cuts: list[int] = []
    held_bytes = 0
    index = -1
    try:
        with _cursor(folder, whole.path) as cursor:
            for index, (_, value) in enumerate(cursor):
                if held_bytes and held_bytes + len(value) > corpus.unit_bytes:
                    cuts.append(index)
                    held_bytes = 0
                held_bytes += len(value)
    except ClipError:
        return [whole]
    edges = [0, *cuts, index + 1]
    if not cuts:
        return [whole]
    return [Part(whole.input_name, whole.path, whole.format, start, stop) for start, stop in itertools.pairwise(edges)]


def read_lmdb(folder: Folder, part: Part, corpus: CorpusSpec) -> Iterator[RawClip | ClipProblem]:
    """Yield the clips of a part in order of their keys; a file that cannot be read is one problem.

    Raises:
        FileNotFoundError: the file is gone.
    """
    names = DEFAULT_MOTION if corpus.motion_field == DEFAULT_MOTION[0] else (corpus.motion_field,)
    try:
        with _cursor(folder, part.path) as cursor:
            for key, value in itertools.islice(cursor, part.start or 0, part.stop):
                name = bytes(key).decode("utf-8", "surrogateescape")
                default_id, where = f"{part.stem}#{name}", f"key {name}"
                try:
                    fault = clip_bytes_fault(where, len(value))
                    if fault:
                        raise ClipError(DropReason.UNREADABLE, fault)
                    motion, fields = clip_of_npz(bytes(value), folder, part, corpus, names)
                except ClipError as error:
                    yield part.problem(default_id, where, error.reason, error.detail)
                    continue
                yield raw_clip(part, where, default_id, motion, fields, corpus)
    except ClipError as error:
        yield part.problem(part.stem, "", error.reason, error.detail)


def first_value(folder: Folder, path: str) -> bytes:
    """Return the value of the first key, nothing where there is none or it is larger than a clip.

    Raises:
        ClipError: the file cannot be read.
    """
    with _cursor(folder, path) as cursor:
        first = next((value for _, value in cursor), memoryview(b""))
        return b"" if clip_bytes_fault(path, len(first)) else bytes(first)


@contextmanager
def _cursor(folder: Folder, path: str) -> Iterator[Iterator[tuple[memoryview, memoryview]]]:
    """Give keys and values of a file in order, as views that stand until the next one."""
    import lmdb

    with _environment(folder, path) as environment:
        try:
            with environment.begin(buffers=True) as transaction, transaction.cursor() as cursor:
                yield iter(cursor)
        except lmdb.Error as error:
            raise ClipError(DropReason.UNREADABLE, f"the LMDB is damaged: {error}") from error


@contextmanager
def _environment(folder: Folder, path: str) -> Iterator[Any]:
    """Give the environment of a file; it is opened once a process, as LMDB demands, and closed by its last reader."""
    local = folder.local_path(path)
    if local is None:
        raise ClipError(DropReason.UNREADABLE, "LMDB is read from local disks only")
    key = (os.getpid(), os.path.realpath(local))
    with _OPENING:
        opened = _OPENED.get(key)
        if opened is None:
            opened = _OPENED[key] = _Opened(_opened(local), 0)
        opened.num_readers += 1
    try:
        yield opened.environment
    finally:
        with _OPENING:
            opened.num_readers -= 1
            if not opened.num_readers:
                del _OPENED[key]
                opened.environment.close()


def _opened(local: str) -> Any:
    """Return an opened environment whose pages were all looked at: following damaged ones would end the process."""
    import lmdb

    found = os.stat(local)  # noqa: PTH116 - raises FileNotFoundError, as every reader does
    num_bytes = found.st_size
    try:
        environment = lmdb.open(
            local, subdir=False, readonly=True, lock=False, create=False, readahead=False, max_spare_txns=0
        )
    except lmdb.Error as error:
        raise ClipError(DropReason.UNREADABLE, f"no LMDB of {num_bytes} bytes: {error}") from error
    fault = _page_fault(_FileState(local, found.st_ino, num_bytes, found.st_mtime_ns))
    if fault:
        wanted = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        environment.close()
        if wanted > num_bytes:  # sound where the pages behind the end are free ones
            raise ClipError(
                DropReason.TRUNCATED, f"the LMDB has {wanted} bytes of pages, the file {num_bytes}: {fault}"
            )
        raise ClipError(DropReason.UNREADABLE, f"the LMDB is damaged, restore it: {fault}")
    return environment


@lru_cache
def _page_fault(state: _FileState) -> str:
    """Return the first fault of a file's pages, "" where they are sound; about a second for 100,000 keys."""
    from lmdb import verify

    try:
        return next(iter(verify.verify(state.path, subdir=False)), "")
    except verify.VerifyError as error:
        return str(error)
