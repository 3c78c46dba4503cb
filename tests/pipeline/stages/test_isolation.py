"""Which part of a unit kills its process: only the one that does so every time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.plan.units import Unit
from pipeline.sources.clip import Part
from pipeline.stages import isolation
from pipeline.stages.isolation import find_crashing

PARTS = tuple(Part("", f"clip{n}.npz", "npz") for n in range(8))
UNIT = Unit("aa", "s", 100, PARTS)


@pytest.fixture(autouse=True)
def parts_are_finest(monkeypatch):
    """npz files are never cut."""
    monkeypatch.setattr(isolation, "finest_parts", lambda folders, parts, corpus: parts)


READER = SimpleNamespace(folders={}, spec=SimpleNamespace(corpus=None))


def crashing(dies, waited=None):
    """The paths that are found where `dies(paths, nth)` says which try kills its process."""
    tries = []

    def survives(reader, unit):
        paths = [part.path for part in unit.parts]
        tries.append(paths)
        return not dies(paths, len(tries))

    waited = [] if waited is None else waited
    return [part.path for part in find_crashing(UNIT, READER, survives, (1.0, 5.0), waited.append)]


def test_clips_that_always_kill_are_found_after_two_more_tries_apart():
    waited = []
    assert crashing(lambda paths, _: {"clip3.npz", "clip6.npz"} & set(paths), waited) == ["clip3.npz", "clip6.npz"]
    assert waited == [1.0, 5.0, 1.0, 5.0]


@pytest.mark.parametrize("nth", range(1, 7))
def test_a_process_killed_from_outside_once_is_no_proof(nth):
    assert crashing(lambda paths, number: number == nth) == []


@pytest.mark.parametrize("last", [4, 5])
def test_memory_that_a_neighbour_takes_for_a_while_is_no_proof(last):
    """Every process dies until the neighbour has gone."""
    assert crashing(lambda paths, number: number <= last) == []


def test_a_clip_that_kills_only_beside_others_is_not_found():
    assert crashing(lambda paths, _: len(paths) > 2) == []
