"""The suite loader: three sides give the same windows, and a side that gives others is found out."""

from __future__ import annotations

import pytest
import torch

from jobs.bench.measure_loader import WindowFiles, measure_loader, require_content
from jobs.bench.result import BenchRequest
from pipeline.errors import DataError
from pipeline.settings.job_config import load_config


def request(windows: int = 60) -> BenchRequest:
    return BenchRequest(windows, 2, load_config(None, ["precision=float32"]))


def test_measure_loader_reads_the_same_windows_three_times() -> None:
    steps: list[str] = []
    threads = torch.get_num_threads()
    results = measure_loader(request(), lambda step, *_: steps.append(step))
    assert [result.baseline_name for result in results] == ["one npy a window, int32", "Parquet of int32 lists"]
    for result in results:
        assert (result.suite, result.unit, len(result.runs), len(result.baseline_runs)) == ("loader", "windows/s", 2, 2)
        assert result.details["windows"] == 60
        assert min(*result.runs, *result.baseline_runs) > 0
    assert steps == ["making tokens", "comparing batches", "reading, 1 of 2", "reading, 2 of 2", "done"]
    assert torch.get_num_threads() == threads


def test_measure_loader_finds_a_side_that_gives_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = WindowFiles.__getitem__

    def inverted(files: WindowFiles, index: int) -> tuple[str, int, torch.Tensor]:
        clip_id, start, bits = honest(files, index)
        return clip_id, start, 1 - bits

    monkeypatch.setattr(WindowFiles, "__getitem__", inverted)
    with pytest.raises(DataError, match="one npy a window, int32: bits of 60 windows"):
        measure_loader(request(), lambda *_: None)


def test_require_content_counts_what_differs() -> None:
    expected = {("a", 0): b"1", ("a", 5): b"2"}
    require_content("side", dict(expected), expected)
    with pytest.raises(DataError, match="bits of 1 windows"):
        require_content("side", {**expected, ("a", 5): b"3"}, expected)
    with pytest.raises(DataError, match="gives 1 windows, not the 2"):
        require_content("side", {("a", 0): b"1"}, expected)
