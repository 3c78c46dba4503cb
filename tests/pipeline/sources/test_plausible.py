from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pipeline.contract.drop_reasons import ClipProblem, DropReason
from pipeline.contract.specs import TokenSpec
from pipeline.plan.plan import make_plan
from pipeline.sources.clip import PreparedClip
from pipeline.sources.plausible import BLOCK_FRAMES, Statistics, check_plausible, column_range, frozen_run
from pipeline.stages.read import UnitReader
from pipeline.storage import open_inputs

Make = Callable[..., Any]

STATISTICS = Statistics(np.array([1, 0, 0, -2], np.float32), np.array([1, 2, 0.5, 10], np.float32))


def clip(motion: Any) -> PreparedClip:
    return PreparedClip("a", "a.npz", "row 3", np.asarray(motion, np.float32), "")


def ramp(frames: int) -> np.ndarray:
    return np.tile(np.linspace(-1, 1, frames)[:, None], (1, 4))


@pytest.mark.parametrize(
    ("frame", "dim", "value", "found"),
    [(0, 0, 11.1, "10.1"), (6, 1, -20.2, "-10.1"), (2, 2, 5.05, "10.1"), (5, 3, 99, "10.1"), (1, 1, 3e38, "1.5e+38")],
)
def test_check_plausible_counts_deviations_by_column(
    make_corpus: Make, frame: int, dim: int, value: float, found: str
) -> None:
    motion = ramp(7)
    motion[frame, dim] = value
    problem = check_plausible(clip(motion), make_corpus(max_abs_z=10), STATISTICS)
    assert isinstance(problem, ClipProblem)
    assert (problem.reason, problem.where) == (DropReason.EXPLODING, "row 3")
    assert f"at frame {frame}, column {dim} is {found} deviations off, 10 are allowed" in problem.detail


def test_check_plausible_keeps_the_limit_itself_and_what_is_not_asked(make_corpus: Make) -> None:
    motion = ramp(7)
    motion[3] = (11, 20, -5, 98)
    kept = clip(motion)
    assert check_plausible(kept, make_corpus(max_abs_z=10), STATISTICS) is kept
    motion[3] = 1e30
    wild = clip(motion)
    assert check_plausible(wild, make_corpus(), STATISTICS) is wild
    assert check_plausible(wild, make_corpus(max_abs_z=10), None) is wild


@pytest.mark.parametrize("frames", [1, 15, 16, 17, 40])
def test_column_range_is_the_least_and_greatest_of_every_frame(frames: int) -> None:
    motion = np.random.Generator(np.random.PCG64(frames)).standard_normal((frames, 3)).astype(np.float32)
    low, high = column_range(motion)
    assert np.array_equal(low, motion.min(axis=0))
    assert np.array_equal(high, motion.max(axis=0))


def test_check_plausible_names_the_stored_column_and_the_frame_of_a_later_block(make_corpus: Make) -> None:
    motion = ramp(BLOCK_FRAMES + 9)
    motion[BLOCK_FRAMES + 2, 1] = 1e6
    problem = check_plausible(clip(motion), make_corpus(max_abs_z=10, columns=(3, 70, 4, 5)), STATISTICS)
    assert f"at frame {BLOCK_FRAMES + 2}, column 70 is" in problem.detail


@pytest.mark.parametrize("start", [0, 1, 5, 18])
def test_check_plausible_frozen(make_corpus: Make, start: int) -> None:
    motion = ramp(24)
    motion[start : start + 6] = motion[start]
    kept = clip(motion)
    assert check_plausible(kept, make_corpus(max_frozen_frames=6), None) is kept
    problem = check_plausible(kept, make_corpus(max_frozen_frames=5), None)
    assert (problem.reason, problem.detail.split(",")[0]) == (
        DropReason.FROZEN,
        f"more than 5 equal frames from frame {start} on",
    )
    motion[start : start + 6, 0] = range(6)  # one column that moves is motion
    kept = clip(motion)
    assert check_plausible(kept, make_corpus(max_frozen_frames=5), None) is kept


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(1, 6), st.integers(2, 7))
def test_frozen_is_the_longest_run_in_blocks_of_any_size(
    make_corpus: Make, values: list[int], limit: int, block_frames: int
) -> None:
    motion = np.repeat(np.array(values)[:, None], 4, axis=1)
    longest = max(len(list(run)) for _, run in itertools.groupby(values))
    assert bool(frozen_run(motion, limit, block_frames)) == (longest > limit)
    found = check_plausible(clip(motion), make_corpus(max_frozen_frames=limit), None)
    assert isinstance(found, ClipProblem) == (longest > limit)


def test_unit_reader_checks_with_statistics(tmp_path: Any, make_corpus: Make, make_codec: Make) -> None:
    motion = ramp(8)
    motion[2, 2] = 500
    np.savez(tmp_path / "far.npz", motion=motion.astype(np.float32), fps=25.0)
    (root,) = open_inputs([str(tmp_path)], (".npz",))
    spec = TokenSpec(codec=make_codec(), corpus=make_corpus(max_abs_z=100))
    units = make_plan([root], spec.corpus).units
    for more, wanted in (({"mean": STATISTICS.mean, "std": STATISTICS.std}, "exploding"), ({}, "")):
        block = UnitReader({"": root.folder}, spec, **more).read(units)
        assert block.ledger["drop_reason"].to_pylist() == [wanted]
