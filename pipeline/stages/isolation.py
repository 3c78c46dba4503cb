"""A clip that kills its process: the unit is split until the clip is found, so that the rest can be tokenized.

Knows no Ray: who tries a read in a process of its own is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.plan.units import Unit
from pipeline.sources.clip import Part
from pipeline.sources.registry import finest_parts
from pipeline.stages.read import UnitReader

PAUSES_S = (1.0, 5.0)
"""Between the times that a clip must kill its process, all of them, before it is dropped for good."""

Survives = Callable[[UnitReader, Unit], bool]
"""Read every clip of a unit in a process of its own, and say whether that process lived."""


def find_crashing(
    unit: Unit,
    reader: UnitReader,
    survives: Survives,
    pauses_s: Sequence[float] = PAUSES_S,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Part, ...]:
    """Return the smallest parts of a unit whose reading kills the process every time, alone; none where all live.

    A process that died once proves nothing: a neighbour may have taken the memory, or somebody killed it.

    Args:
        survives: tries a unit; called about 2 log2(clips) times for each crashing clip, and once more after each pause.
        pauses_s: seconds between the times that one part must kill its process.
    """
    parts = list(finest_parts(reader.folders, unit.parts, reader.spec.corpus))

    def lives(some: Sequence[Part]) -> bool:
        return survives(reader, replace(unit, parts=tuple(some)))

    def dies_again(part: Part, pause_s: float) -> bool:
        sleep(pause_s)
        return not lives([part])

    suspects = _suspects(parts, lives)
    return tuple(part for part in suspects if all(dies_again(part, pause_s) for pause_s in pauses_s))


def _suspects(parts: Sequence[Part], lives: Callable[[Sequence[Part]], bool]) -> Iterator[Part]:
    if lives(parts):
        return
    if len(parts) == 1:
        yield parts[0]
        return
    middle = len(parts) // 2
    yield from _suspects(parts[:middle], lives)
    yield from _suspects(parts[middle:], lives)
