"""Workers that refuse or die: the error reaches the person with the exit code that says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.contract.specs import Contract, Numerics, TokenSpec
from pipeline.dataset.token_store import TokenStore
from pipeline.errors import OutputMismatchError
from pipeline.executors.executor import TokenizeProgress, TokenizeStages
from pipeline.plan.plan import make_plan
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.stages.codec import open_codec
from pipeline.stages.read import UnitReader
from pipeline.stages.tokenize_stage import TokenizerSettings
from pipeline.stages.write import FragmentWriter
from pipeline.storage import Folder, open_inputs

NUM_CLIPS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_job):
    """Motion for a job of some ten seconds, one unit a clip."""
    return write_job(tmp_path_factory.mktemp("faults"), NUM_CLIPS, 3)


def test_a_worker_of_other_numerics_refuses_by_name(corpus, tmp_path, make_corpus, ray_local):
    from pipeline.executors.ray_graph import tokenize_with_ray

    codec = open_codec(str(corpus / "codec.safetensors"))
    spec = TokenSpec(codec=codec.spec, corpus=make_corpus(unit_files=1))
    numerics = Numerics(device="abacus", torch="0", pyarrow="0")
    contract = Contract(codec=spec.codec, corpus=spec.corpus, numerics=numerics)
    roots = open_inputs([str(corpus / "motion")], [".npz"])
    store = TokenStore.of(Folder(str(tmp_path)), spec.spec_id)
    stages = TokenizeStages(
        reader=UnitReader({"": roots[0].folder}, spec),
        codec=codec.data,
        tokenizer=TokenizerSettings(contract, store, num_threads=1, mixed_numerics=False),
        writer=FragmentWriter(store, contract),
        num_actors=1,
        cpus_per_actor=0.5,
        gpus_per_actor=0.0,
    )
    runs = [[unit] for unit in make_plan(roots, spec.corpus).units]
    with pytest.raises(OutputMismatchError, match="abacus"):
        list(tokenize_with_ray(runs, stages, TokenizeProgress(JobObserver(), JobRecord(), StopSwitch())))


def run_until_committed(corpus, output):
    """Start a job with Ray and return its process once the first fragments stand."""
    command = [sys.executable, "-m", "jobs.cli", "tokenize", str(corpus / "motion"), str(output)]
    command += ["-c", str(corpus / "codec.safetensors"), "--set", "units.files=1"]
    command += ["--set", "gate=off", "--set", "run.report=false"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_health_check_period_ms": "1000",
    }  # missed after 5 s, not 15
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while not list(output.glob("_store/*/fragments/*/*.parquet")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def children_named(process, name):
    return [child for child in process.children(recursive=True) if name in " ".join(child.cmdline()[:1])]


def test_a_job_whose_ray_died_continues(corpus, tmp_path):
    process = run_until_committed(corpus, tmp_path / "o")
    for raylet in children_named(process, "raylet"):
        raylet.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 75), output  # Ray's native code ends a driver without a word
    assert not (tmp_path / "o" / "dataset.json").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("o/_store/*/fragments/*/*.parquet")}
    again = CliRunner().invoke(app, [*process.args[3:], "--local"])
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in done} == done
