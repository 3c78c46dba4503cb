from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.contract.specs import AudioRule, CodecSpec, CorpusSpec, TokenSpec, WindowRule
from pipeline.executors.executor import Executor, writes_at_once
from pipeline.plan.units import Unit


def executor_of(cpus_of_nodes: Sequence[float], **others: Any) -> Executor:
    """Return an executor that counts machines and runs nothing."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("only machines are counted here")

    fields: dict[str, Any] = dict.fromkeys(("start", "tokenize", "build", "measure", "survives", "ask_worker"), refuse)
    return Executor(**{"name": "ray", "num_gpus": 0.0, **fields, "cpus_of_nodes": cpus_of_nodes, **others})


@pytest.mark.parametrize(
    ("cpus_of_nodes", "sure", "machines", "cores"),
    [
        ([8.0], 8.0, 1, 8),
        ([0.0, 2.0, 2.0], 2.0, 2, 2),
        ([0.0, 16.0], 16.0, 1, 16),
        ([4.0, 16.0, 8.0], 12.0, 3, 4),
        ([0.0], 1.0, 1, 1),
        ([0.5], 0.5, 1, 1),
    ],
)
def test_executor_counts_machines(cpus_of_nodes: list[float], sure: float, machines: int, cores: int) -> None:
    """The CPUs that are sure outlive the loss of the largest machine; a head that runs no tasks is none."""
    executor = executor_of(cpus_of_nodes)
    assert (executor.num_cpus, executor.num_machines, executor.cores_a_machine) == (sure, machines, cores)


@pytest.mark.parametrize(
    ("stride", "phases", "emit", "mebibytes", "rows"),
    [
        (100, 0, (), 128, 8),
        (100, 0, (), 0, 8),
        (1, 0, (), 128, 4),
        (2, 1, (), 128, 4),
        (1, 0, ("latent",), 32, 3),
        (1, 0, ("latent",), 128, 1),
    ],
)
def test_writers_have_fewer_rows_in_work_where_tokens_are_large(
    make_codec: Callable[..., CodecSpec],
    make_corpus: Callable[..., CorpusSpec],
    stride: int,
    phases: int,
    emit: tuple[str, ...],
    mebibytes: int,
    rows: int,
) -> None:
    """A frame of 106 numbers takes 424 bytes; at every frame begins a window of 1,448 bytes, a latent has 6,400."""
    codec = make_codec(motion_dim=106, code_dim=32, patch_nums=(1, 5, 25, 50, 100))
    corpus = make_corpus(window=WindowRule(stride=stride, tail="shift", phases=phases, seed=0), emit=emit)
    half = Unit("a", "", mebibytes << 19, ())
    assert writes_at_once([[half], [half, half]], TokenSpec(codec=codec, corpus=corpus)) == rows


def test_audio_that_is_cut_counts_among_the_tokens(
    make_codec: Callable[..., CodecSpec], make_corpus: Callable[..., CorpusSpec]
) -> None:
    """Two halves of 4 s, 16,000 samples a second of two bytes each: 256,000 bytes beside the 1,448."""
    codec = make_codec(motion_dim=106, code_dim=32, patch_nums=(1, 5, 25, 50, 100))
    audio = AudioRule(field="wav", rate_hz=16_000, mode="cut", encoding="int16", tolerance_s=0)
    window = WindowRule(stride=100, tail="shift", phases=0, seed=0)
    spec = TokenSpec(codec=codec, corpus=make_corpus(window=window, audio=audio))
    assert writes_at_once([[Unit("a", "", 128 << 20, ())]], spec) == 2


@pytest.mark.parametrize(
    "module", ["pipeline.executors.ray_graph", "jobs.commands.run.plan_command", "jobs.commands.run.tokenize_command"]
)
def test_what_has_to_start_fast_imports_no_torch(module: str) -> None:
    """Tasks that read and write start in a fresh process: torch would take seconds of each. Commands start Ray beside
    its import, and plan's start is to last as long as a run's.
    """
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
