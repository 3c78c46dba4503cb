"""Where things lie in an output folder."""

from __future__ import annotations

WINDOW_INDEX_PATH = "index/windows.parquet"


DEALT_PATH = "_store/shuffle"
"""Folder of the dealt rows in an output: there while a global shuffle runs, and after it was killed."""


CONSTANTS_PATH = "constants.npz"
"""Null codes and schedule, written by the first tokenizer before any fragment can exist."""


MANIFEST_PATH = "dataset.json"


STAGED_PATH = "staged.json"
"""A dataset that failed the gate, beside the published one that it would have replaced."""
