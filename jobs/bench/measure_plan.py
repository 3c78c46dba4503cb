"""The suite plan: inputs of many clips cut into units, from the first listing to the rows that a graph would pass.

Knows how to make the data and to check a plan; counts and JSON are result.py's. Each plan is made in a process
of its own, `python -m jobs.bench.measure_plan FOLDER UNIT_BYTES`, so that its peak memory is its own.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.result import BenchRequest, BenchResult, Report
from pipeline.contract.specs import CorpusSpec, WindowRule
from pipeline.errors import DataError
from pipeline.plan.plan import Plan, make_plan, plan_to_bytes
from pipeline.plan.units import group_units
from pipeline.settings.job_config import UnitConfig
from pipeline.settings.run_config import RunConfig
from pipeline.sources.registry import open_readable
from pipeline.stages.blocks import units_to_text
from pipeline.storage import Folder

SUITE = "plan"
CLIPS_PER_FILE, GROUPS_PER_FILE, FILES_PER_FOLDER = 50, 5, 200
FEWER = 10
"""How many times fewer clips stand in as many files of the comparison: a plan should not care."""
CLIP_FRAMES, MOTION_DIM = 5, 8
"""Of a clip: little, since a plan reads footers and no motion."""
NUM_WORKERS = 2


@dataclass(frozen=True)
class ClipFiles:
    """Parquet files of short clips."""

    folder: Folder
    num_files: int
    clips_per_file: int
    unit_bytes: int
    """A unit of this size is one row group, so that every file is cut inside."""


def measure_plan(request: BenchRequest, report: Report) -> list[BenchResult]:
    """Plan files as a job would, then with every file cut inside, and that again with a tenth of the clips.

    Args:
        request: its windows are clips, of one window each.

    Raises:
        DataError: a plan leaves clips out or holds some twice, or differs from the one before.
    """
    num_files = -(-request.windows // CLIPS_PER_FILE)
    whole: list[dict[str, Any]] = []
    cut: list[dict[str, Any]] = []
    few: list[dict[str, Any]] = []
    num_steps = 3 * (request.repeats + 1) + 2
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place:
        report("making files", 0, num_steps)
        many = make_files(Folder(f"{place}/many"), num_files, CLIPS_PER_FILE)
        report("making files of fewer clips", 1, num_steps)
        fewer = make_files(Folder(f"{place}/fewer"), num_files, CLIPS_PER_FILE // FEWER)
        sides = [(whole, many, UnitConfig().bytes), (cut, many, many.unit_bytes), (few, fewer, fewer.unit_bytes)]
        for repeat in range(-1, request.repeats):
            for number, (runs, files, unit_bytes) in enumerate(sides):
                report(f"plan, {repeat + 1} of {request.repeats}", 3 * (repeat + 1) + number + 2, num_steps)
                done = run_planner(files, unit_bytes)
                if repeat >= 0:
                    runs.append(done)
        report("done", num_steps, num_steps)
    return [*_results(f"{num_files:,} files as they are", whole), *_results("every file cut inside", cut, few)]


def make_files(folder: Folder, num_files: int, clips_per_file: int) -> ClipFiles:
    """Write files of as many clips each, in row groups."""
    group_rows = max(1, clips_per_file // GROUPS_PER_FILE)
    values = np.random.Generator(np.random.PCG64(0)).normal(size=clips_per_file * CLIP_FRAMES * MOTION_DIM)
    frames = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32)), MOTION_DIM)
    edges = pa.array(np.arange(clips_per_file + 1, dtype=np.int32) * CLIP_FRAMES)
    motion = pa.ListArray.from_arrays(edges, frames)
    for number in range(num_files):
        ids = [f"clip-{number:06d}-{clip:03d}" for clip in range(clips_per_file)]
        place = Path(folder.url) / f"{number // FILES_PER_FOLDER:04d}"
        place.mkdir(parents=True, exist_ok=True)
        # past the storage door: it syncs every file to disk, which takes minutes here and means nothing
        pq.write_table(pa.table({"clip_id": ids, "motion": motion}), place / f"{number:06d}.parquet", group_rows)
    first = pq.read_metadata(Path(folder.url) / "0000" / "000000.parquet")
    return ClipFiles(folder, num_files, clips_per_file, first.row_group(0).total_byte_size * 3 // 2)


def run_planner(files: ClipFiles, unit_bytes: int) -> dict[str, Any]:
    """Plan in a process of its own, check what it planned, and return seconds by step, units and peak memory.

    Raises:
        DataError: it failed, or the plan is not one of these files.
    """
    with tempfile.TemporaryDirectory(dir=Path(files.folder.url).parent) as place:
        stored = Path(place) / "plan.json"
        command = [sys.executable, "-m", "jobs.bench.measure_plan", files.folder.url, str(unit_bytes), str(stored)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"the plan failed: {done.stderr.strip()[-2000:]}")
        check_parts(json.loads(stored.read_text()), files)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def check_parts(parts: Sequence[tuple[str, int | None, int | None]], files: ClipFiles) -> None:
    """Raise DataError unless (path, first row, past-the-last row) of a plan's parts hold every clip once."""
    by_path: dict[str, list[tuple[int, int]]] = {}
    for path, start, stop in parts:
        by_path.setdefault(path, []).append((start or 0, files.clips_per_file if stop is None else stop))
    wrong = [path for path, ranges in by_path.items() if not _is_whole(sorted(ranges), files.clips_per_file)]
    if wrong or len(by_path) != files.num_files:
        example = f", and not every clip of {wrong[0]} once" if wrong else ""
        raise DataError(f"the plan names {len(by_path):,} of {files.num_files:,} files{example}")


def _is_whole(ranges: Sequence[tuple[int, int]], num_clips: int) -> bool:
    joined = all(left[1] == right[0] for left, right in itertools.pairwise(ranges))
    return joined and ranges[0][0] == 0 and ranges[-1][1] == num_clips


def _results(name: str, runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]] = ()) -> list[BenchResult]:
    digests = {run["digest"] for run in runs}
    if len(digests) != 1:
        raise DataError(f"plans of the same files differ: {sorted(digests)}")
    steps = [{key: value for key, value in run.items() if key.endswith("_s")} for run in runs]
    seconds = BenchResult(
        SUITE,
        f"plan, {name}",
        "s",
        tuple(run["total_s"] for run in runs),
        f"as many files with {FEWER} times fewer clips" if others else None,
        tuple(run["total_s"] for run in others),
        {"units": runs[0]["units"], "seconds": steps},
    )
    return [seconds, BenchResult(SUITE, f"peak memory, {name}", "MiB", tuple(run["peak_mib"] for run in runs))]


def main() -> None:
    """Plan a folder, leave its parts in a file, and print seconds, units and peak memory as one line of JSON."""
    folder, unit_bytes, stored = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    seconds: dict[str, Any] = {}
    begin = last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[f"{name}_s"] = round(now - last, 4)
        last = now

    roots = open_readable([folder], "auto", {})
    lap("list")
    plan = make_plan(roots, _corpus(unit_bytes))
    lap("cut")
    digest = plan.digest
    io.BytesIO(plan_to_bytes(plan))
    lap("store")
    rows = [units_to_text(run) for run in group_units(plan.units, NUM_WORKERS, RunConfig().row_bytes)]
    lap("group")
    seconds["total_s"] = round(time.perf_counter() - begin, 4)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    stored.write_text(json.dumps(_parts(plan)))
    print(json.dumps({**seconds, "units": len(plan.units), "rows": len(rows), "digest": digest, "peak_mib": peak}))


def _parts(plan: Plan) -> list[tuple[str, int | None, int | None]]:
    return [(part.path, part.start, part.stop) for unit in plan.units for part in unit.parts]


def _corpus(unit_bytes: int) -> CorpusSpec:
    return CorpusSpec(
        motion_field="motion",
        clip_id_field=None,
        motion_dim=None,
        format="auto",
        columns=None,
        fps=None,
        resample="none",
        max_abs_z=None,
        max_frozen_frames=None,
        clips="",
        window=WindowRule(stride=100, tail="shift", phases=0, seed=0),
        unit_bytes=unit_bytes,
        unit_files=UnitConfig().files,
        precision="float32",
        batch_size=32,
    )


if __name__ == "__main__":
    main()
