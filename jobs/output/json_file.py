"""The file of `--json`: what a command tells, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError
from pipeline.storage import parent_and_name


def write_json(place: str, tree: Any, options: Mapping[str, Any] | None = None) -> None:
    """Write a file, a path or URL, whole or not at all; a pipe, a device or a link is written through.

    Args:
        options: of the storage, as `run.storage_options`.

    Raises:
        OutputError: it cannot be written there.
    """
    data = (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()
    local = Path(place)
    if "://" not in place and (local.is_symlink() or (local.exists() and not local.is_file() and not local.is_dir())):
        try:
            local.write_bytes(data)
        except OSError as error:
            raise OutputError(f"cannot write {place}: {error.strerror}; name another file") from error
        return
    folder, name = parent_and_name(place, options)
    folder.publish(name, data)
