import pytest

from bitwise_vae.config import BitwiseVAEConfig
from jobs import bench_encode
from jobs.bench_encode import measure_encode
from jobs.bench_result import BenchRequest
from pipeline.errors import DataError
from pipeline.job_config import load_config

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
    encode, time_it, written = bench_encode._encoded, bench_encode._timed, []

    def encoded(*arguments):
        written.append(encode(*arguments))
        return written[-1]

    def forgetful(work):
        num_before = len(written)
        bits, spent = time_it(work)
        if num_before > 1 and len(written) > num_before:  # right in the first run, then what stood there before
            bits[0] = written[-2][0]
        return bits, spent

    monkeypatch.setattr(bench_encode, "CPU_PRECISIONS", ("float32",))
    monkeypatch.setattr(bench_encode, "_encoded", encoded)
    monkeypatch.setattr(bench_encode, "_timed", forgetful)
    with pytest.raises(DataError):
        measure_encode(REQUEST, quiet)


def test_measure_encode_refuses_bits_that_change_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = bench_encode._encoded, []

    def restless(*arguments):
        bits = honest(*arguments)
        calls.append(bits)
        bits[-1, -1, -1, -1] ^= len(calls) > 2
        return bits

    monkeypatch.setattr(bench_encode, "_encoded", restless)
    with pytest.raises(DataError, match="not those of the run before"):
        measure_encode(REQUEST, quiet)
