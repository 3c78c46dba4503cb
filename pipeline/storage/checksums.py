"""Checksums of inputs: what files hold, whenever and wherever they were written.

Knows folders and listed files, and nothing of what the bytes mean.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event

from pipeline.errors import StorageError
from pipeline.storage.files import StoredFile
from pipeline.storage.folder import READ_BLOCK_BYTES, Folder
from pipeline.storage.inputs import InputRoot

CHECKSUM_THREADS = 16
"""Files that are read at once; each holds one block of READ_BLOCK_BYTES."""
FILES_AHEAD = 1024
"""Files that are asked for before the first of them is waited for."""


def with_checksums(
    roots: Sequence[InputRoot],
    on_file: Callable[[str], None],
    *,
    block_bytes: int = READ_BLOCK_BYTES,
    files_ahead: int = FILES_AHEAD,
) -> list[InputRoot]:
    """Return inputs whose files say the SHA-256 of their content; each file is read once, from end to end.

    Args:
        on_file: called in this thread with the path of each file that was read, in order.
        block_bytes: of a file that are read at once.
        files_ahead: how many files are asked for before the first of them is waited for.

    Raises:
        StorageError: storage did not answer after all retries, or a file was changed or removed since it was listed.
    """
    files = [(root.folder, file) for root in roots for file in root.files]
    read = iter(_read_files(files, on_file, block_bytes, files_ahead))
    return [replace(root, files=tuple(itertools.islice(read, len(root.files)))) for root in roots]


def _read_files(
    files: Sequence[tuple[Folder, StoredFile]], on_file: Callable[[str], None], block_bytes: int, files_ahead: int
) -> list[StoredFile]:
    read: list[StoredFile] = []
    ahead: deque[Future[StoredFile]] = deque()
    is_over = Event()

    def take_first() -> None:
        read.append(ahead.popleft().result())
        on_file(read[-1].path)

    with ThreadPoolExecutor(CHECKSUM_THREADS) as pool:
        try:
            for folder, file in files:
                ahead.append(pool.submit(_with_checksum, folder, file, block_bytes, is_over))
                if len(ahead) == files_ahead:
                    take_first()
            while ahead:
                take_first()
        finally:
            is_over.set()  # after an error or a signal the other threads end with their block
    return read


def _with_checksum(folder: Folder, file: StoredFile, block_bytes: int, is_over: Event) -> StoredFile:
    """Return a file with its checksum, or as it was once `is_over`.

    Raises:
        StorageError: storage did not answer after all retries, or the file was changed or removed since it was listed.
    """
    digest = hashlib.sha256()
    for start in range(0, file.num_bytes, block_bytes):
        if is_over.is_set():
            return file
        stop = min(start + block_bytes, file.num_bytes)
        try:
            block = folder.read_range(file.path, start, stop)
        except OSError as error:
            raise StorageError(
                f"cannot read {file.path} in {folder!r}: {type(error).__name__}: {error.strerror or error}; "
                "run the same command again to list the input anew"
            ) from error
        if len(block) < stop - start:
            raise StorageError(
                f"{file.path} in {folder!r} ends at byte {start + len(block)} of the {file.num_bytes} that were "
                "listed: it is being changed; run the same command again"
            )
        digest.update(block)
    return replace(file, checksum=digest.hexdigest())
