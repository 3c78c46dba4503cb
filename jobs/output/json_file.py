"""The file of `--json`: what a command tells, for programs."""

from __future__ import annotations

import json
from typing import Any

from pipeline.storage import parent_and_name


def write_json(place: str, tree: Any) -> None:
    """Write a file, a path or URL, whole or not at all.

    Raises:
        OutputError: it cannot be written there.
    """
    folder, name = parent_and_name(place)
    folder.publish(name, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())
