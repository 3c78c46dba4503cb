"""Named inputs: files, folders and globs that a person lists become folders with the files to read.

Knows suffixes only as text and opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputFormatError, InputNotFoundError
from pipeline.storage.files import StoredFile
from pipeline.storage.folder import Folder, parent_and_name
from pipeline.storage.retries import without_secrets

_WILDCARDS = re.compile(r"[*?\[]")
_NAMED_INPUT = re.compile(r"([A-Za-z0-9_-]+)=(.+)", re.DOTALL)
_NUM_SHOWN = 5
_LOCKS = ("lock.mdb", "-lock")
"""How the names of the files end that LMDB keeps beside its data; they hold none."""


@dataclass(frozen=True)
class InputRoot:
    """One named input: its folder, the files to read, and how many others were passed over, hidden ones too."""

    name: str
    folder: Folder
    files: tuple[StoredFile, ...]
    skipped: int


def open_inputs(
    inputs: Sequence[str], known_suffixes: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[InputRoot]:
    """Return what each input holds: a file, a folder or a glob, optionally written ``name=path``.

    One unnamed input has the name "", several are called by their position. Of folders and globs, files
    with a part of their path that starts with ``.`` or ``_`` are left out, and LMDB's locks.

    Args:
        known_suffixes: lower case, with the dot; empty admits every file.
        options: passed to fsspec.

    Raises:
        InputNotFoundError: nothing there, nothing of a known suffix, or two inputs of one name.
        InputFormatError: a file named directly has an unknown suffix, or a path is not UTF-8.
    """
    roots: dict[str, InputRoot] = {}
    for position, item in enumerate(inputs):
        named, path = _name_and_path(item)
        default = str(position) if len(inputs) > 1 else ""
        name = default if named is None else named
        if name in roots:
            raise InputNotFoundError(f"two inputs are called {name!r}: write NAME={without_secrets(path)}")
        roots[name] = _open_input(name, path, tuple(known_suffixes), options)
        for file in roots[name].files:
            if not _is_utf8(file.path):
                raise InputFormatError(f"{roots[name].folder!r} holds {file.path!r}, which is not UTF-8: rename it")
    return list(roots.values())


def is_input_there(item: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether an input is a file or a folder that holds anything, a glob's folder for a glob; cheap on disk."""
    path = _name_and_path(item)[1]
    parent, basename = parent_and_name(path, options)
    places = [Folder(path, options)]
    if _WILDCARDS.search(path):
        places.append(Folder(_folder_of_glob(path)[0], options))
    return parent.exists(basename) or any(place.list_names() for place in places)


def _name_and_path(item: str) -> tuple[str | None, str]:
    named = _NAMED_INPUT.fullmatch(item)
    return (named[1], named[2]) if named else (None, item)


def _open_input(name: str, path: str, known: tuple[str, ...], options: Mapping[str, Any] | None) -> InputRoot:
    parent, basename = parent_and_name(path, options)
    file = parent.stat(basename) if basename else None
    if file is not None:
        if known and not basename.lower().endswith(known):
            raise InputFormatError(
                f"input {without_secrets(path)} has no known suffix ({', '.join(known)}): "
                "say what it is with --set input.format=FORMAT"
            )
        return InputRoot(name, parent, (file,), 0)
    folder = Folder(path, options)
    listed = folder.list_files()
    if not listed and _WILDCARDS.search(path):
        folder, listed = _expand_glob(path, options)
    visible = [file for file in listed if not _is_hidden(file.path)]
    kept = tuple(file for file in visible if not known or file.path.lower().endswith(known))
    if not kept:
        raise InputNotFoundError(f"input {without_secrets(path)} {_lack(visible, known)}")
    return InputRoot(name, folder, kept, len(listed) - len(kept))


def _is_hidden(path: str) -> bool:
    return any(part[:1] in "._" for part in path.split("/")) or path.endswith(_LOCKS)


def _expand_glob(pattern: str, options: Mapping[str, Any] | None) -> tuple[Folder, list[StoredFile]]:
    """Return the folder before the first wildcard, and its files that match or lie in folders that do."""
    from fsspec.utils import glob_translate

    fixed, rest = _folder_of_glob(pattern)
    folder = Folder(fixed, options)
    regex = re.compile(glob_translate(rest))

    def is_match(path: str) -> bool:
        steps = path.split("/")
        return any(regex.match("/".join(steps[:depth])) for depth in range(1, len(steps) + 1))

    return folder, [file for file in folder.list_files() if is_match(file.path)]


def _folder_of_glob(pattern: str) -> tuple[str, str]:
    """Return the folder before the first part with a wildcard, and the pattern from there on."""
    parts = pattern.rstrip("/").split("/")
    first = next(index for index, part in enumerate(parts) if _WILDCARDS.search(part))
    fallback = "/" if pattern.startswith("/") else "."
    return "/".join(parts[:first]) or fallback, "/".join(parts[first:])


def _lack(visible: Sequence[StoredFile], known: Sequence[str]) -> str:
    if not visible:
        return "holds no file: looked for a file, a folder and a glob of this name; check the path"
    shown = ", ".join(file.path for file in visible[:_NUM_SHOWN])
    more = ", .." if len(visible) > _NUM_SHOWN else ""
    return (
        f"holds {len(visible)} files, none with a known suffix ({', '.join(known)}): {shown}{more}; "
        "name another path, or say what they are with --set input.format=FORMAT"
    )


def _is_utf8(path: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in path)
