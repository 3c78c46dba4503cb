"""The suite control: units pass the real graph with tokenizers that sleep, and each has its fragment afterwards."""

from __future__ import annotations

import pytest

from jobs.bench import measure_control as bench_control
from jobs.bench.measure_control import measure_control
from jobs.bench.result import BenchRequest
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import DataError
from pipeline.plan.units import Unit
from pipeline.settings.job_config import load_config


def request(windows: int) -> BenchRequest:
    return BenchRequest(windows, 1, load_config(None, ["run.local=true"]))


def test_measure_control_passes_units_in_runs_and_one_by_one() -> None:
    steps: list[str] = []
    (result,) = measure_control(request(40), lambda step, *_: steps.append(step))
    assert (result.unit, len(result.runs), len(result.baseline_runs)) == ("units/min", 1, 1)
    assert result.details["units"] == 40
    assert result.details["rows"][0] >= 8
    assert result.details["rows_of_baseline"] == [10]
    assert 0 < result.median <= 60 / bench_control.UNIT_S
    assert steps[-1] == "done"


def test_measure_control_finds_units_without_a_fragment(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = TokenStore.publish_fragment

    def forgetful(store: TokenStore, unit: Unit, data: bytes) -> None:
        if unit.parts[0].path != "000/000011.npz":
            publish(store, unit, data)

    monkeypatch.setattr(TokenStore, "publish_fragment", forgetful)
    with pytest.raises(DataError, match="1 of 12 units have no fragment"):
        measure_control(request(12), lambda *_: None)
