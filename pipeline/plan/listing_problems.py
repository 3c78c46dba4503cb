"""What is odd about the files of a job, before any of them is opened.

Knows no Ray, torch or Arrow. A finding is a hint, not an error: tokenize would run all the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.plan.plan import Plan
from pipeline.storage import InputRoot, without_secrets

MANY_FILES, SMALL_BYTES = 100_000, 100_000
"""From so many files on, of fewer bytes than this on average, opening them costs more than reading them."""
LARGE_UNIT = 4
"""Times the size that `units.bytes` asks for."""
NUM_SHOWN = 3


def listing_problems(roots: Sequence[InputRoot], plan: Plan, unit_bytes: int) -> list[str]:
    """Return a line for each kind of oddity, with a few examples and the next step.

    Args:
        unit_bytes: motion bytes that a unit should have.
    """
    problems = []
    num_skipped = sum(root.skipped for root in roots)
    if num_skipped:
        problems.append(f"{num_skipped:,} files are skipped: hidden ones, and those of no known suffix")
    empty = [file.path for root in roots for file in root.files if not file.num_bytes]
    if empty:
        problems.append(f"{len(empty):,} files are empty ({_shown(empty)}): they will be dropped as unreadable")
    times = Counter(root.folder.url_of(file.path) for root in roots for file in root.files)
    repeated = sorted(url for url, count in times.items() if count > 1)
    if repeated:
        shown = _shown([without_secrets(url) for url in repeated])
        problems.append(f"{len(repeated):,} files are in two inputs ({shown}): their clips would be tokenized twice")
    num_files = sum(len(root.files) for root in roots)
    if num_files >= MANY_FILES and plan.num_bytes / num_files < SMALL_BYTES:
        problems.append(
            f"{num_files:,} files of {plan.num_bytes // num_files:,} bytes on average: packed into Parquet or tars they"
            " are listed and read many times faster"
        )
    large = [unit for unit in plan.units if unit.num_bytes > LARGE_UNIT * unit_bytes]
    if large:
        largest = max(large, key=lambda unit: unit.num_bytes)
        problems.append(
            f"{len(large):,} units are larger than {LARGE_UNIT} times units.bytes, up to {largest.num_bytes:,} bytes"
            f" ({largest.parts[0].path}): a task holds a whole one in memory"
        )
    return problems


def _shown(names: Sequence[str]) -> str:
    more = ", .." if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
