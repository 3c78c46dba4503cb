"""The suite control: how many units a minute the graph passes when computing costs next to nothing.

Everything is the job's own (reading, Ray Data, writing of fragments) but the tokenizers, which sleep. Counts and JSON
are result.py's.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.result import BenchRequest, BenchResult, Report
from jobs.session.session import open_session
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import DataError
from pipeline.executors.executor import Executor, TokenizeProgress
from pipeline.job.request import Job, prepare
from pipeline.job.tokenize_job import runs_of, stages_of
from pipeline.plan.plan import Plan, make_plan
from pipeline.plan.units import Unit
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import JobConfig, TokenizeRequest
from pipeline.stages.blocks import MotionBlock, TokenBlock
from pipeline.stages.tokenize_stage import TokenizeListener, TokenizerSettings
from pipeline.storage import Folder

SUITE = "control"
NUM_ACTORS = 8
UNIT_S = 0.02
"""How long a simulated tokenizer sleeps over a unit."""
FEWER = 4
"""How many times fewer units pass one by one: they take long."""
CODEC = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)
FILES_PER_FOLDER = 500


class SleepingTokenizer:
    """Stands where the tokenizer stands, sleeps as long as it is told and gives zeros."""

    def __init__(self, codec: bytes, settings: TokenizerSettings, listener: TokenizeListener) -> None:
        """Take what a tokenizer takes, and load nothing."""
        del codec
        self._half_bytes, self._listener = settings.contract.codec.half_bytes, listener

    @property
    def is_shared(self) -> bool:
        """Say no: on CPUs, a row at a time."""
        return False

    def tokenize(self, block: MotionBlock) -> TokenBlock:
        """Return zeros for every window of a block, `UNIT_S` a unit later."""
        num_windows = len(block.start_frame)
        self._listener.begun(num_windows, sum(unit.num_bytes for unit in block.units))
        time.sleep(UNIT_S * len(block.units))
        self._listener.encoded(num_windows)
        return TokenBlock(
            units=block.units,
            bits=np.zeros((num_windows, 2, self._half_bytes), np.uint8),
            ledger=block.ledger,
            start_frame=block.start_frame,
            seconds=block.seconds,
            clip_columns=block.clip_columns,
        )


@dataclass(frozen=True)
class _Passed:
    """One pass of units through the graph."""

    units_a_minute: float
    num_rows: int
    workers_s: float


def measure_control(request: BenchRequest, report: Report) -> list[BenchResult]:
    """Pass units of one window through the graph in runs as a job would, and one by one, in turn.

    The rate is that of the last three quarters, so that the start of the actors does not count.

    Args:
        request: its windows are units.

    Raises:
        DataError: a unit has no fragment afterwards.
    """
    in_runs: list[_Passed] = []
    one_by_one: list[_Passed] = []
    num_steps = 2 * request.repeats + 3
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place:
        report("making motion", 0, num_steps)
        make_units(Folder(place), request.windows)
        config = control_config(request.config)
        with open_session(config.run) as executor:
            for repeat in range(-1, request.repeats):
                name = f"{repeat + 1} of {request.repeats}" if repeat >= 0 else "warm-up"
                report(f"runs of units, {name}", 2 * repeat + 3, num_steps)
                ours = pass_units(place, config, executor, in_rows=False)
                report(f"a row a unit, {name}", 2 * repeat + 4, num_steps)
                theirs = pass_units(place, config, executor, in_rows=True) if repeat >= 0 else ours
                if repeat >= 0:
                    in_runs.append(ours)
                    one_by_one.append(theirs)
        report("done", num_steps, num_steps)
    details = {
        "units": request.windows,
        "actors": NUM_ACTORS,
        "unit_s": UNIT_S,
        "rows": [passed.num_rows for passed in in_runs],
        "rows_of_baseline": [passed.num_rows for passed in one_by_one],
        "workers_s": [round(passed.workers_s, 2) for passed in in_runs],
    }
    rates, other = (tuple(passed.units_a_minute for passed in side) for side in (in_runs, one_by_one))
    name = f"control, {NUM_ACTORS} simulated actors"
    return [BenchResult(SUITE, name, "units/min", rates, "a row of the graph for each unit", other, details)]


def control_config(config: JobConfig) -> JobConfig:
    """Return the configuration with a unit for each file and as many workers as are simulated."""
    run = config.run.model_copy(update={"workers": NUM_ACTORS})
    units = config.units.model_copy(update={"files": 1})
    return config.model_copy(update={"gate": "off", "units": units, "run": run})


def make_units(folder: Folder, num_units: int) -> None:
    """Write a file of one window for each unit, and a small codec."""
    from bitwise_vae.checkpoints.checkpoint import checkpoint_bytes, random_checkpoint

    frames = np.zeros((CODEC.window_frames, CODEC.motion_dim), np.float32)
    sink = io.BytesIO()
    np.savez(sink, motion=frames, fps=CODEC.fps)
    for number in range(num_units):
        place = Path(folder.url) / "motion" / f"{number // FILES_PER_FOLDER:03d}"
        place.mkdir(parents=True, exist_ok=True)
        # past the storage door: it syncs every file to disk, which takes minutes here and means nothing
        (place / f"{number:06d}.npz").write_bytes(sink.getbuffer())
    checkpoint = random_checkpoint(CODEC, frames[0], frames[0] + 1, 0)
    folder.publish("codec.safetensors", checkpoint_bytes(checkpoint))


def pass_units(place: str, config: JobConfig, executor: Executor, *, in_rows: bool) -> _Passed:
    """Pass the units of a folder through the graph into a fresh store, and check that each has its fragment.

    Args:
        in_rows: a row a unit, of the first units only.

    Raises:
        DataError: a unit has no fragment.
    """
    with tempfile.TemporaryDirectory(dir=place) as output:
        request = TokenizeRequest((f"{place}/motion",), output, f"{place}/codec.safetensors", None, None, config)
        job = prepare(request, executor)
        plan = make_plan(job.roots, job.contract.corpus)
        units = plan.units[: max(1, len(plan.units) // FEWER)] if in_rows else plan.units
        runs = [[unit] for unit in units] if in_rows else runs_of(job, units, executor, NUM_ACTORS)
        executor.start()
        passed = _pass(job, runs, executor)
        missing = _without_fragment(job.store, Plan(tuple(units)))
        if missing:
            raise DataError(f"{missing:,} of {len(units):,} units have no fragment")
        return passed


def _pass(job: Job, runs: Sequence[Sequence[Unit]], executor: Executor) -> _Passed:
    record = JobRecord()
    progress = TokenizeProgress(JobObserver(), record, StopSwitch())
    stages = replace(stages_of(job, executor, NUM_ACTORS), make_tokenizer=SleepingTokenizer)
    done, at = [0], [time.perf_counter()]
    for account in executor.tokenize(runs, stages, progress):
        progress.committed(account)
        done.append(account.num_units)
        at.append(time.perf_counter())
    counts = list(itertools.accumulate(done))
    quarter = next(index for index, count in enumerate(counts) if count * FEWER >= counts[-1])
    first = quarter if quarter < len(at) - 1 else 0  # a single row: there is no other way to count
    rate = 60 * (counts[-1] - counts[first]) / (at[-1] - at[first])
    return _Passed(rate, len(runs), record.seconds["workers"])


def _without_fragment(store: TokenStore, plan: Plan) -> int:
    committed = store.list_fragments()
    return sum((unit.key, unit.stamp) not in committed for unit in plan.units)
