"""How much one clip may take: bounds that are checked before memory is asked for.

Knows no format. What goes beyond them is damage or an attack, never motion.
"""

from __future__ import annotations

MAX_CLIP_BYTES = 4 << 30
"""Of one clip: four days of 106 float32 values at 25 frames a second."""

MAX_GROWTH = 64
"""What is decoded may be so many times larger than what is stored."""

FREE_BYTES = 64 << 20
"""So much may always be decoded: a clip that stands still compresses well."""

MAX_JSON_BYTES = 4 << 20
"""Of the JSON beside a clip; Python needs some thirty times as much for it."""

MAX_HEADER_BYTES = 1 << 20
"""Of one name or header record inside an archive."""


def clip_bytes_fault(what: str, num_bytes: int) -> str:
    """Return why so much cannot be one clip, "" where it can."""
    if num_bytes <= MAX_CLIP_BYTES:
        return ""
    return f"{what} has {num_bytes} bytes, a clip has {MAX_CLIP_BYTES} at most: cut it into several"


def growth_fault(what: str, num_bytes: int, stored_bytes: int) -> str:
    """Return why so many bytes cannot come of so many stored ones, "" where they can."""
    limit = max(FREE_BYTES, MAX_GROWTH * stored_bytes)
    if num_bytes <= limit:
        return ""
    return f"{what} promises {num_bytes} bytes of {stored_bytes} stored ones, at most {limit} are decoded"
