"""Which format a file has, how a large one is cut, and the one door to reading a part.

Readers are imported when the first file of their format is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.contract.drop_reasons import ClipProblem
from pipeline.contract.specs import CodecSpec, CorpusSpec
from pipeline.errors import InputFormatError, InputNotFoundError, StorageError
from pipeline.sources.clip import Part, RawClip
from pipeline.storage import Folder, InputRoot, StoredFile, open_inputs

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tar": "webdataset",
    ".npz": "npz",
    ".npy": "npy",
    ".lmdb": "lmdb",
    "data.mdb": "lmdb",
}
"""How names end. LMDB calls its file data.mdb in every folder; .mdb alone may be another program's database."""


def format_of(path: str, configured: str = "auto") -> str:
    """Return the format of a file: the configured one, or by suffix under ``auto``.

    Raises:
        InputFormatError: the suffix is unknown.
    """
    if configured != "auto":
        return configured
    found = format_by_suffix(path)
    if found is None:
        raise InputFormatError(
            f"{path} has no known suffix ({', '.join(SUFFIXES)}): say what it is with --set input.format=FORMAT"
        )
    return found


def format_by_suffix(path: str) -> str | None:
    """Return the format that a file's name tells, None where it tells none."""
    return next((name for suffix, name in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def open_readable(inputs: Sequence[str], configured: str, options: Mapping[str, Any]) -> list[InputRoot]:
    """Return what each input holds of the formats that are read here, or of the configured one.

    Raises:
        InputNotFoundError: an input is missing or holds no motion.
        InputFormatError: a file named directly has an unknown suffix, or LMDB stands where it cannot be read.
    """
    roots = open_inputs(inputs, tuple(SUFFIXES) if configured == "auto" else (), options)
    for root in roots:
        for file in root.files:
            if format_of(file.path, configured) == "lmdb":
                from pipeline.sources.formats.lmdb import check_lmdb

                check_lmdb(root.folder, file.path)
    return roots


def cut_file(folder: Folder, input_name: str, file: StoredFile, corpus: CorpusSpec) -> list[Part]:
    """Return the parts of a file, in order, that hold each of its clips once.

    Up to `unit_bytes` a file is one part; what cannot be cut, such as npz, always is.

    Raises:
        StorageError: storage does not answer, or the file is gone since it was listed.
    """
    whole = Part(input_name, file.path, format_of(file.path, corpus.format))
    if file.num_bytes <= corpus.unit_bytes:
        return [whole]
    try:
        if whole.format == "parquet":
            from pipeline.sources.formats.parquet import cut_parquet

            return cut_parquet(folder, whole, corpus)
        if whole.format == "webdataset":
            from pipeline.sources.formats.webdataset import cut_webdataset

            return cut_webdataset(folder, whole, corpus)
        if whole.format == "lmdb":
            from pipeline.sources.formats.lmdb import cut_lmdb

            return cut_lmdb(folder, whole, corpus)
    except OSError as error:
        raise _storage_error(folder, whole, error) from error
    if whole.format in ("npz", "npy"):
        from pipeline.sources.formats.arrays import cut_arrays

        return cut_arrays(whole, file)
    return [whole]


def finest_parts(folders: Mapping[str, Folder], parts: Sequence[Part], corpus: CorpusSpec) -> Iterator[Part]:
    """Yield parts cut as small as their format allows, in the order in which they are read.

    Args:
        folders: input name -> its folder.

    Raises:
        StorageError: storage does not answer.
    """
    smallest = corpus.model_copy(update={"unit_bytes": 1})
    for part in parts:
        folder = folders[part.input_name]
        file = folder.stat(part.path)
        for fine in [part] if file is None else cut_file(folder, part.input_name, file, smallest):
            if (part.start or 0) <= (fine.start or 0) and (part.stop is None or (fine.start or 0) < part.stop):
                yield fine


def read_part(folder: Folder, part: Part, corpus: CorpusSpec, codec: CodecSpec) -> Iterator[RawClip | ClipProblem]:
    """Yield every clip of a part in a fixed order; what is wrong with the data is a problem, never raised.

    Raises:
        StorageError: storage does not answer, or the file is gone since it was listed.
    """
    try:
        yield from _reader_of(folder, part, corpus, codec)
    except OSError as error:
        raise _storage_error(folder, part, error) from error


def _reader_of(folder: Folder, part: Part, corpus: CorpusSpec, codec: CodecSpec) -> Iterator[RawClip | ClipProblem]:
    if part.format == "parquet":
        from pipeline.sources.formats.parquet import read_parquet

        return read_parquet(folder, part, corpus, codec)
    if part.format == "webdataset":
        from pipeline.sources.formats.webdataset import read_webdataset

        return read_webdataset(folder, part, corpus)
    if part.format == "lmdb":
        from pipeline.sources.formats.lmdb import read_lmdb

        return read_lmdb(folder, part, corpus)
    if part.format in ("npz", "npy"):
        from pipeline.sources.formats.arrays import read_arrays

        return read_arrays(folder, part, corpus)
    raise NotImplementedError(f"no reader for {part.format}: name it in registry.py")


def _storage_error(folder: Folder, part: Part, error: OSError) -> StorageError:
    return StorageError(
        f"cannot read {part.path} in {folder!r}: {type(error).__name__}: {error.strerror or error}; "
        "run the same command again to list the input anew"
    )


def open_motion(inputs: Sequence[str], output: Folder, motion_format: str) -> list[InputRoot]:
    """Return the inputs of a job on an output, which is no motion of its own where it lies inside one of them.

    Raises:
        InputNotFoundError: an input is missing or holds no motion.
        InputFormatError: a file named directly has an unknown suffix.
    """
    return [_without_output(root, output) for root in open_readable(inputs, motion_format, output.options)]


def _without_output(root: InputRoot, output: Folder) -> InputRoot:
    """Leave out what stands in the output, where that lies inside an input: our shards are no motion."""
    inside = output.path_below(root.folder)
    if inside is None:
        return root
    files = tuple(file for file in root.files if not f"{file.path}/".startswith(f"{inside}/" if inside else ""))
    if not files:
        raise InputNotFoundError(f"{output} is both input and output: name another output folder")
    return replace(root, files=files)
