"""The suite pipeline: the whole job against a plain script, on the same files, checked bit for bit.

Knows how to make the data and to run both sides; counts and JSON are result.py's.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bitwise_vae.bits import pack_bits
from jobs.bench.data import BenchData, make_data
from jobs.bench.result import BenchRequest, BenchResult, Report
from jobs.session.session import open_session
from pipeline.dataset.manifest import Manifest
from pipeline.errors import DataError
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest
from pipeline.storage import Folder

SUITE = "pipeline"
BASELINE_NAME = "DataLoader, quant_to_vqidx in batches of 32, np.save of int32; float32"

WARM_UP_WINDOWS, BASELINE_WINDOWS = 32, 4000
"""Where a job has more windows than the latter, the plain script takes the first files of its input alone."""

MAX_FLIP_SHARE = {"float32": 1e-5, "float16": 0.05, "bfloat16": 0.05}
"""Share of bits that may differ from the baseline's, which computes in float32."""

MAX_FEW_FLIPS = 32
"""Bits that may differ in any case: one rounding at a coarse scale shows again at finer ones."""


@dataclass(frozen=True)
class _Ours:
    manifest: Manifest
    seconds: float
    start_s: float
    executor: str
    record: JobRecord


@dataclass(frozen=True)
class _Baseline:
    seconds: float
    windows: int
    torch_threads: int


@dataclass(frozen=True)
class BitCheck:
    """How many bits were compared, and how many differ."""

    num_bits: int
    num_flipped: int


def measure_pipeline(request: BenchRequest, report: Report) -> list[BenchResult]:
    """Run job and baseline in turn, each in a fresh folder, and compare what they wrote.

    A job is timed to the published dataset, with the start of its actors, without that of Ray; the baseline
    from the end of its imports to its last file. One run of each on a small input goes before and is not counted.

    Raises:
        DataError: windows are missing, or more bits differ than `MAX_FLIP_SHARE` allows.
    """
    ours: list[_Ours] = []
    theirs: list[_Baseline] = []
    checks: list[BitCheck] = []
    num_steps = 2 * request.repeats + 3
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place:
        report("making motion", 0, num_steps)
        small = make_data(Folder(f"{place}/small"), min(request.windows, WARM_UP_WINDOWS), request.codec)
        data = make_data(Folder(f"{place}/data"), request.windows, request.codec)
        for repeat in range(-1, request.repeats):
            source, name = (data, f"{repeat + 1} of {request.repeats}") if repeat >= 0 else (small, "warm-up")
            with tempfile.TemporaryDirectory(dir=place) as run_place:
                output, baseline_output = Folder(f"{run_place}/tokens"), Folder(f"{run_place}/baseline")
                report(f"job, {name}", 2 * repeat + 3, num_steps)
                job = _run_job(source, output, request)
                report(f"baseline, {name}", 2 * repeat + 4, num_steps)
                some = source.first_files(max(BASELINE_WINDOWS, source.windows_of_file[0]))
                script = run_baseline(some, baseline_output)
                if script.windows != some.num_windows:
                    raise DataError(f"wanted {some.num_windows} windows, the baseline tokenized {script.windows}")
                check = check_bits(output, job.manifest, baseline_output, source.num_windows)
                require_agreement(check, request.config.precision)
            if repeat >= 0:
                ours.append(job)
                theirs.append(script)
                checks.append(check)
        report("done", num_steps, num_steps)
    return _results(request, ours, theirs, checks)


def run_baseline(data: BenchData, output: Folder) -> _Baseline:
    """Run the plain script in a process of its own and return what it measured.

    Raises:
        DataError: the script failed.
    """
    files = [data.folder.url_of(path) for path in data.files]
    command = [sys.executable, "-m", "jobs.bench.baseline", *files]
    options = ["--checkpoint", data.checkpoint, "--output", output.url]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the baseline failed: {done.stderr.strip()[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return _Baseline(found["seconds"], found["windows"], found["torch_threads"])


def check_bits(output: Folder, manifest: Manifest, baseline: Folder, num_windows: int) -> BitCheck:
    """Compare our Parquet shards with the baseline's files, one a clip, window by window.

    Raises:
        DataError: a window is missing, there twice, or not the baseline's.
    """
    codec = manifest.contract.codec
    tables = [pq.read_table(io.BytesIO(output.read(shard.path))) for shard in manifest.shards["parquet"]]
    rows = pa.concat_tables(tables).select(["clip_id", "start_frame", "prev_bits", "this_bits"])
    rows = rows.sort_by([("clip_id", "ascending"), ("start_frame", "ascending")])
    if rows.num_rows != num_windows:
        raise DataError(f"wanted {num_windows} windows, the job wrote {rows.num_rows}")
    packed = np.stack([_bytes_of(rows[name], codec.half_bytes) for name in ("prev_bits", "this_bits")], axis=1)
    clip_ids, firsts, counts = np.unique(rows["clip_id"].to_numpy(), return_index=True, return_counts=True)
    names = {file.path for file in baseline.list_files()}
    if not names <= {f"{clip_id}.npy" for clip_id in clip_ids}:
        raise DataError(f"the job tokenized {len(clip_ids)} clips, the baseline {len(names)}, and not the same ones")
    num_flipped = num_compared = 0
    for clip_id, first, count in zip(clip_ids, firsts, counts, strict=True):
        if f"{clip_id}.npy" not in names:
            continue
        bits = np.load(io.BytesIO(baseline.read(f"{clip_id}.npy")), allow_pickle=False)
        if len(bits) != count:
            raise DataError(f"clip {clip_id}: the job wrote {count} windows, the baseline {len(bits)}")
        theirs = pack_bits(bits).reshape(int(count), 2, codec.half_bytes)
        num_flipped += int(np.unpackbits(packed[first : first + count] ^ theirs).sum())
        num_compared += theirs.size * 8
    return BitCheck(num_compared, num_flipped)


def require_agreement(check: BitCheck, precision: str) -> None:
    """Raise DataError where more bits differ than the precision explains."""
    limit = max(MAX_FLIP_SHARE[precision] * check.num_bits, MAX_FEW_FLIPS)
    if check.num_flipped > limit:
        raise DataError(
            f"{check.num_flipped:,} of {check.num_bits:,} bits differ from the baseline's, {precision} explains"
            f" {limit:,.0f} at most: the speeds say nothing until the two agree"
        )


def _run_job(data: BenchData, output: Folder, request: BenchRequest) -> _Ours:
    config = request.config.model_copy(update={"gate": "off"})  # random weights decode to noise
    job = TokenizeRequest((data.folder.url_of("motion"),), output.url, data.checkpoint, None, None, config)
    with open_session(request.config.run) as executor:
        begin, record = time.perf_counter(), JobRecord()
        done = tokenize_dataset(job, executor, JobObserver(), record, JobControl("bench", StopSwitch()))
        seconds = time.perf_counter() - begin
    start_s = record.seconds["start"]
    return _Ours(done.manifest, seconds - start_s, start_s, executor.name, record)


def _results(
    request: BenchRequest, ours: Sequence[_Ours], theirs: Sequence[_Baseline], checks: Sequence[BitCheck]
) -> list[BenchResult]:
    codec = request.codec
    num_bits, num_flipped = sum(check.num_bits for check in checks), sum(check.num_flipped for check in checks)
    details = {
        "windows": request.windows,
        "repeats": request.repeats,
        "executor": ours[0].executor,
        "batch_size": ours[0].manifest.contract.corpus.batch_size,
        "codec": {"hidden_dim": codec.hidden_dim, "depth": codec.depth, "num_heads": codec.num_heads},
        "baseline_windows": theirs[0].windows,
        "baseline_torch_threads": theirs[0].torch_threads,
        "job_seconds": [round(job.seconds, 3) for job in ours],
        "baseline_seconds": [round(script.seconds, 3) for script in theirs],
        "seconds": [_rounded(job.record.seconds) for job in ours],
        "stage_seconds": [_rounded(job.record.stage_seconds) for job in ours],
        "bits": {"compared": num_bits, "different": num_flipped, "share": num_flipped / num_bits},
    }
    whole_job = BenchResult(
        SUITE,
        f"whole job, local Parquet, {request.config.precision}",
        "windows/s",
        tuple(request.windows / job.seconds for job in ours),
        BASELINE_NAME,
        tuple(script.windows / script.seconds for script in theirs),
        details,
    )
    stage = BenchResult(
        SUITE,
        f"the same, from the first tokenizer that is ready to the last fragment, {request.config.precision}",
        "windows/s",
        tuple(request.windows / job.record.seconds["tokenize"] for job in ours),
        BASELINE_NAME,
        tuple(script.windows / script.seconds for script in theirs),
    )
    start = f"{ours[0].executor} session start, not in the job's time"
    return [whole_job, stage, BenchResult(SUITE, start, "s", tuple(job.start_s for job in ours))]


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def _bytes_of(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """Return a column of fixed-size binary as (rows, width)."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    values = np.frombuffer(array.buffers()[1], np.uint8)
    return values[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
