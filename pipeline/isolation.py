"""A clip that kills its process: the unit is split until the clip is found, so that the rest can be tokenized.

Knows no Ray: who tries a read in a process of its own is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.plan import Unit
from pipeline.read_units import UnitReader
from pipeline.sources.clip import Part
from pipeline.sources.registry import cut_file

Survives = Callable[[UnitReader, Unit], bool]
"""Read every clip of a unit in a process of its own, and say whether that process lived."""


def find_crashing(unit: Unit, reader: UnitReader, survives: Survives) -> tuple[Part, ...]:
    """Return the smallest parts of a unit whose reading kills the process; none where only all together do.

    Args:
        survives: tries a unit; called about 2 log2(clips) times for each crashing clip.
    """
    return tuple(_culprits(list(finest_parts(unit, reader)), unit, reader, survives))


def _culprits(parts: Sequence[Part], unit: Unit, reader: UnitReader, survives: Survives) -> Iterator[Part]:
    if survives(reader, replace(unit, parts=tuple(parts))):
        return
    if len(parts) == 1:
        yield parts[0]
        return
    middle = len(parts) // 2
    yield from _culprits(parts[:middle], unit, reader, survives)
    yield from _culprits(parts[middle:], unit, reader, survives)


def finest_parts(unit: Unit, reader: UnitReader) -> Iterator[Part]:
    """Yield a unit's parts cut as small as their format allows, in the order in which they are read."""
    smallest = reader.spec.corpus.model_copy(update={"unit_bytes": 1})
    for part in unit.parts:
        folder = reader.folders[part.input_name]
        file = folder.stat(part.path)
        for fine in [part] if file is None else cut_file(folder, part.input_name, file, smallest):
            if (part.start or 0) <= (fine.start or 0) and (part.stop is None or (fine.start or 0) < part.stop):
                yield fine
