"""The only door to disk and object storage: list, ranged read, retry, atomic publish, named inputs.

Knows no Ray, torch or Arrow, and nothing of what the bytes mean.
"""

from __future__ import annotations

from pipeline.storage.checksums import with_checksums
from pipeline.storage.files import StoredFile
from pipeline.storage.folder import Folder, parent_and_name, read_bytes, read_text
from pipeline.storage.inputs import InputRoot, is_input_there, open_inputs
from pipeline.storage.retries import RetryPolicy, num_retries, without_secrets
from pipeline.storage.scratch import Scratch, scratch_named

__all__ = [
    "Folder",
    "InputRoot",
    "RetryPolicy",
    "Scratch",
    "StoredFile",
    "is_input_there",
    "num_retries",
    "open_inputs",
    "parent_and_name",
    "read_bytes",
    "read_text",
    "scratch_named",
    "with_checksums",
    "without_secrets",
]
