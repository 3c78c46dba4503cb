"""Where things lie in an output folder."""

MANIFEST_PATH = "dataset.json"
STAGED_PATH = "staged.json"
"""A dataset that failed the gate, beside the published one that it would have replaced."""
CONSTANTS_PATH = "constants.npz"
"""Null codes and schedule, written by the first tokenizer before any fragment can exist."""
WINDOW_INDEX_PATH = "index/windows.parquet"
MARKER_PATH = "_store/export.json"
"""In an export without a token store of its own: which datasets it is made from."""
DEALT_PATH = "_store/shuffle"
"""Folder of the dealt rows in an output: there while a global shuffle runs, and after it was killed."""
SHARD_DIGITS = 20
"""Of the SHA-256 in a shard's name, hexadecimal: 80 bits, so that two contents never share one."""
