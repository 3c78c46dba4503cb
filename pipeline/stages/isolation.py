"""A clip that kills its process: the unit is split until the clip is found, so that the rest can be tokenized.

Knows no Ray: who tries a read in a process of its own is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.plan.units import Unit
from pipeline.sources.clip import Part
from pipeline.sources.registry import finest_parts
from pipeline.stages.read import UnitReader

Survives = Callable[[UnitReader, Unit], bool]
"""Read every clip of a unit in a process of its own, and say whether that process lived."""


def find_crashing(unit: Unit, reader: UnitReader, survives: Survives) -> tuple[Part, ...]:
    """Return the smallest parts of a unit whose reading kills the process; none where only all together do.

    Args:
        survives: tries a unit; called about 2 log2(clips) times for each crashing clip.
    """
    parts = list(finest_parts(reader.folders, unit.parts, reader.spec.corpus))
    return tuple(_culprits(parts, unit, reader, survives))


def _culprits(parts: Sequence[Part], unit: Unit, reader: UnitReader, survives: Survives) -> Iterator[Part]:
    if survives(reader, replace(unit, parts=tuple(parts))):
        return
    if len(parts) == 1:
        yield parts[0]
        return
    middle = len(parts) // 2
    yield from _culprits(parts[:middle], unit, reader, survives)
    yield from _culprits(parts[middle:], unit, reader, survives)
