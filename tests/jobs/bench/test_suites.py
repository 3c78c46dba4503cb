"""The bench: both sides agree bit for bit, a wrong baseline is found out, and the JSON says what was measured."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.data import MOTION_FORMATS, BenchData, clip_lengths, make_data
from jobs.bench.measure_pipeline import BitCheck, measure_pipeline, require_agreement, run_baseline
from jobs.bench.result import SPREAD, BenchRequest, BenchResult
from jobs.bench.suites import make_request, results_table, results_tree, run_bench
from pipeline.contract.specs import CodecSpec, CorpusSpec, WindowRule
from pipeline.contract.windows import window_starts
from pipeline.errors import ConfigError, DataError
from pipeline.settings.job_config import load_config
from pipeline.sources.clip import Part
from pipeline.sources.registry import read_part
from pipeline.storage import Folder

TINY = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)


def request(windows: int = 8, precision: str = "float32") -> BenchRequest:
    return BenchRequest(windows, 1, load_config(None, ["run.local=true", f"precision={precision}"]), TINY)


def quiet(step: str, num_done: int, num_steps: int) -> None:
    assert 0 <= num_done <= num_steps, step


def test_measure_pipeline_compares_every_window_of_both_sides() -> None:
    steps: list[str] = []
    whole_job, stage, start = measure_pipeline(request(), lambda step, *_: steps.append(step))
    assert (whole_job.name, whole_job.unit) == ("whole job, local Parquet, float32", "windows/s")
    assert whole_job.details["bits"] == {"compared": 8 * 2 * 181 * 32, "different": 0, "share": 0}
    assert whole_job.details["windows"] == 8
    assert whole_job.details["executor"] == "local"
    assert whole_job.ratio == pytest.approx(whole_job.runs[0] / whole_job.baseline_runs[0])
    assert stage.baseline_runs == whole_job.baseline_runs
    assert stage.median > whole_job.median
    assert (start.unit, start.baseline, start.ratio) == ("s", None, None)
    expected = ["making motion", "job, warm-up", "baseline, warm-up", "job, 1 of 1", "baseline, 1 of 1", "done"]
    assert steps == expected


def falsified(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let `change` alter the array of the baseline's first clip when it is read to be compared."""
    read = Folder.read

    def wrong(folder: Folder, path: str) -> bytes:
        data = read(folder, path)
        if path != "clip-000000.npy":
            return data
        sink = io.BytesIO()
        np.save(sink, change(np.load(io.BytesIO(data))))
        return sink.getvalue()

    monkeypatch.setattr(Folder, "read", wrong)


def test_measure_pipeline_finds_bits_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap_halves(bits: np.ndarray) -> np.ndarray:
        return bits[:, ::-1]

    falsified(monkeypatch, swap_halves)
    with pytest.raises(DataError, match="bits differ from the baseline's"):
        measure_pipeline(request(), quiet)


def test_measure_pipeline_finds_windows_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    falsified(monkeypatch, lambda bits: bits[:-1])
    with pytest.raises(DataError, match="windows, the baseline"):
        measure_pipeline(request(), quiet)


def test_run_baseline_reports_a_script_that_fails(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    data = BenchData(folder, ("missing.parquet",), (1,))
    with pytest.raises(DataError, match="the baseline failed"):
        run_baseline(data, folder.child("out"))


@pytest.mark.parametrize(
    ("precision", "num_bits", "num_flipped", "is_error"),
    [
        ("float32", 10_000_000, 100, False),
        ("float32", 10_000_000, 101, True),
        ("float32", 1000, 32, False),
        ("float32", 1000, 33, True),
        ("bfloat16", 1_000_000, 50_000, False),
        ("bfloat16", 1_000_000, 50_001, True),
    ],
)
def test_require_agreement_allows_what_the_precision_explains(
    precision: str, num_bits: int, num_flipped: int, is_error: bool
) -> None:
    check = BitCheck(num_bits, num_flipped)
    if is_error:
        with pytest.raises(DataError, match="differ"):
            require_agreement(check, precision)
    else:
        require_agreement(check, precision)


@pytest.mark.parametrize("num_windows", [1, 2, 31, 1000])
def test_clip_lengths_hold_exactly_the_windows_asked_for(num_windows: int) -> None:
    rule = WindowRule(stride=100, tail="shift", phases=0, seed=0)
    lengths = clip_lengths(num_windows, 100)
    assert sum(len(window_starts("clip", length, 100, rule)) for length in lengths) == num_windows
    assert num_windows < 1000 or len(set(lengths)) > 20


def test_bench_result_states_medians_range_and_both_ratios() -> None:
    result = BenchResult("s", "n", "windows/s", (2.0, 9.0, 4.0), "script", (1.0, 3.0, 4.0), {"windows": 5})
    tree = result.to_json()
    assert (tree["median"], tree["spread"], tree["baseline"], tree["baseline_spread"]) == (4, 7, 3, 3)
    assert tree["ratio"] == pytest.approx(4 / 3, rel=1e-4)
    assert tree["paired_ratio"] == 2
    assert tree["windows"] == 5
    assert BenchResult("s", "n", "s", (1.5,)).to_json()["ratio"] is None


def test_run_bench_prints_and_writes_the_results(tmp_path: Path) -> None:
    seen: list[BenchRequest] = []

    def suite(asked: BenchRequest, report: Any) -> list[BenchResult]:
        seen.append(asked)
        report("working", 1, 2)
        return [BenchResult("pipeline", "whole job, float16", "windows/s", (10.0, 12.0), "script", (5.0, 5.0))]

    console = Console(file=io.StringIO(), width=120)
    json_file = tmp_path / "new" / "bench.json"
    run_bench("pipeline", make_request("pipeline", 64, 2, "float16"), str(json_file), console, {"pipeline": suite})
    assert (seen[0].windows, seen[0].repeats, seen[0].config.precision) == (64, 2, "float16")
    assert (seen[0].codec.hidden_dim, seen[0].codec.depth, seen[0].codec.num_heads) == (512, 6, 8)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1/2 working" in text
    assert "2.20" in text
    tree = json.loads(json_file.read_text())
    assert set(tree) == {"results", "spread_is", "hardware", "versions"}
    assert tree["results"][0]["ratio"] == 2.2
    assert tree["versions"]["python"]
    assert tree["hardware"]["cores"] >= 1


def test_make_request_refuses_an_unknown_suite_precision_or_format() -> None:
    with pytest.raises(ConfigError, match="there are: control, encode, export, gpus, loader, pipeline, plan, startup"):
        make_request("pipelines", 8, 1, "float32")
    with pytest.raises(ConfigError, match="precision"):
        make_request("pipeline", 8, 1, "float8")
    with pytest.raises(ConfigError, match="bench gpus makes no motion as 'lmdb'; there is: parquet, webdataset"):
        make_request("gpus", 8, 1, "float32", "lmdb")
    with pytest.raises(ConfigError, match="bench pipeline makes no motion as 'webdataset'; there is: parquet"):
        make_request("pipeline", 8, 1, "float32", "webdataset")
    assert make_request("gpus", None, 1, "float32", "webdataset").motion_format == "webdataset"


def test_make_data_holds_the_same_clips_in_every_format(
    tmp_path: Path, make_corpus: Callable[..., CorpusSpec], make_codec: Callable[..., CodecSpec]
) -> None:
    corpus, codec = make_corpus(), make_codec(motion_dim=TINY.motion_dim)
    found = {}
    for motion_format in MOTION_FORMATS:
        data = make_data(Folder(str(tmp_path / motion_format)), 300, TINY, motion_format)
        parts = [Part("", path, motion_format) for path in data.files]
        clips = [clip for part in parts for clip in read_part(data.folder, part, corpus, codec)]
        assert len(data.files) > 1
        assert sum(-(-len(clip.motion) // TINY.window_frames) for clip in clips) == data.num_windows == 300
        found[motion_format] = [(clip.clip_id, clip.fps, clip.motion.tobytes()) for clip in clips]
    assert found["webdataset"] == found["parquet"]


def test_results_table_leaves_ratios_out_where_there_is_no_baseline() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table([BenchResult("pipeline", "session start", "s", (1.25,))]))
    assert "session start" in console.file.getvalue()  # type: ignore[attr-defined]
    assert SPREAD in results_tree([])["spread_is"]
