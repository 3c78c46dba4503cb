from typing import Any

import numpy as np
import pytest

from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.inference.encoder import WindowEncoder
from jobs.bench.measure_encode import measure_encode
from jobs.bench.result import BenchRequest
from pipeline.errors import DataError
from pipeline.settings.job_config import load_config

REQUEST = BenchRequest(40, 2, load_config(None), BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2))


def quiet(step: str, num_done: int, num_steps: int) -> None:
    assert 0 <= num_done <= num_steps, step


def test_measure_encode_compares_every_precision_with_float64() -> None:
    results = measure_encode(REQUEST, quiet)
    assert results[0].name == "encode float32, depth 1"
    for result in results:
        assert len(result.runs) == len(result.baseline_runs) == 2
        assert result.details["windows"] == 40
        assert result.details["seconds"]["compute"] > 0
    assert results[0].details["share_of_bits_unlike_float64"] < 1e-5


def test_measure_encode_finds_output_that_a_run_left_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, written = WindowEncoder.encode, []

    def forgetful(encoder: WindowEncoder, *arguments: Any) -> np.ndarray:
        bits = encode(encoder, *arguments)
        if encoder.precision == "float32":
            if len(written) > 1 and len(written) % 2:  # right in the first run, then what other motion left there
                bits[0] = written[-1][0]
            written.append(bits)
        return bits

    monkeypatch.setattr(WindowEncoder, "encode", forgetful)
    with pytest.raises(DataError, match="of the bits differ from float64's in float32"):
        measure_encode(REQUEST, quiet)
    assert len(written) == 4


def test_measure_encode_refuses_bits_that_change_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = WindowEncoder.encode, []

    def restless(encoder: WindowEncoder, *arguments: Any) -> np.ndarray:
        bits = encode(encoder, *arguments)
        calls.append(bits)
        bits[-1, -1, -1, -1] ^= len(calls) > 2
        return bits

    monkeypatch.setattr(WindowEncoder, "encode", restless)
    with pytest.raises(DataError, match="not those of the run before"):
        measure_encode(REQUEST, quiet)
