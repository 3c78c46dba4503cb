"""The suite plan: small files planned as they are and cut inside; a plan that leaves clips out is found out."""

from __future__ import annotations

import pytest

from jobs.bench.measure_plan import CLIPS_PER_FILE, ClipFiles, check_parts, make_files, measure_plan, run_planner
from jobs.bench.result import BenchRequest
from pipeline.errors import DataError
from pipeline.settings.job_config import load_config
from pipeline.storage import Folder


def test_measure_plan_plans_files_as_they_are_and_cut_inside() -> None:
    steps: list[str] = []
    request = BenchRequest(4 * CLIPS_PER_FILE, 1, load_config(None, []))
    results = measure_plan(request, lambda step, *_: steps.append(step))
    whole, whole_memory, cut, cut_memory = results
    assert [result.unit for result in results] == ["s", "MiB", "s", "MiB"]
    assert whole.details["units"] <= 4 < cut.details["units"]
    assert (len(cut.runs), len(cut.baseline_runs)) == (1, 1)
    assert (whole.baseline, whole_memory.baseline) == (None, None)
    assert cut_memory.median > 20
    assert steps[:2] == ["making files", "making files of fewer clips"]
    assert steps[-1] == "done"


def test_run_planner_reports_a_plan_that_fails(tmp_path) -> None:
    with pytest.raises(DataError, match=r"the plan failed: (?s:.*)InputNotFoundError"):
        run_planner(ClipFiles(Folder(str(tmp_path / "missing")), 1, 5, 100), 100)


def test_run_planner_finds_files_that_a_plan_leaves_out(tmp_path) -> None:
    files = make_files(Folder(str(tmp_path / "files")), 2, 5)
    with pytest.raises(DataError, match="the plan names 2 of 3 files"):
        run_planner(ClipFiles(files.folder, 3, 5, files.unit_bytes), files.unit_bytes)


@pytest.mark.parametrize("ranges", [[(0, 3)], [(0, 3), (4, 10)], [(0, 6), (5, 10)], [(1, None)], [(None, None)] * 2])
def test_check_parts_finds_clips_that_are_missing_or_doubled(tmp_path, ranges) -> None:
    files = ClipFiles(Folder(str(tmp_path)), 1, 10, 100)
    check_parts([("a", None, None)], files)
    check_parts([("a", 5, 10), ("a", 0, 5)], files)
    with pytest.raises(DataError, match="not every clip of a once"):
        check_parts([("a", *edges) for edges in ranges], files)
