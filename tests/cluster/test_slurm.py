"""The batch script on a real Slurm: submitted, queued again in mid-run, stopped for its time, cancelled."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    from slurm_server import Slurm, free_ports, missing_programs

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "jobs" / "deploy" / "slurm" / "tokenize.sh"
OWN_FOLDERS = ("_store", "runs", "report")
SETTINGS = ["--set", "units.files=1", "--set", "gate=off", "--set", "run.report=false"]
WAIT_S = 420.0
"""Nearly all of it is for a machine with much other work: the job itself takes some ten seconds."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"Slurm's programs are missing ({', '.join(missing_programs())}):"
        " apt-get install slurmctld slurmd slurm-client munge",
    ),
]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A running Slurm of two nodes."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    server = Slurm(folder / "s")
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_job: Callable[[Path, int, int], Path]) -> Path:
    """Motion and a codec for a job of some ten seconds."""
    return write_job(tmp_path_factory.mktemp("slurm-job"), 48, 6)


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> dict[str, bytes]:
    """The dataset that one process makes of it."""
    words = [sys.executable, "-m", "jobs.cli", *command(place, "alone"), "--local"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=WAIT_S)
    return tree_of(place / "alone")


@pytest.fixture
def submit(slurm: Slurm, place: Path) -> Iterator[Callable[..., str]]:
    """Return a function that submits the job for an output, with options for sbatch, and gives its id."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    jobs = []

    def run(output: str, *options: str, **variables: str) -> str:
        python = str(Path(sys.executable).parent)
        variables |= {
            "PATH": f"{python}:{slurm.environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MOTION_TOKENS_RAY_PORT": str(free_ports(1)[0]),
            "MOTION_TOKENS_RAY_FOLDER": str(folder / "r"),
        }
        log = [f"--chdir={place}", f"--output={place / output}.log"]
        words = ["sbatch", "--parsable", *log, *options, str(SCRIPT), *command(place, output)]
        jobs.append(slurm.ask(*words, **variables))
        return jobs[-1]

    yield run
    for job in jobs:
        slurm.ask("scancel", "--quiet", job)
        wait_for(lambda job=job: slurm.state(job)["JobState"] in ("COMPLETED", "CANCELLED", "FAILED"), "its end")
    wait_for(lambda: not processes_of(folder), "the end of Ray's processes")
    shutil.rmtree(folder, ignore_errors=True)


def command(place: Path, output: str) -> list[str]:
    inputs = [str(place / "motion"), str(place / output), "-c", str(place / "codec.safetensors")]
    return ["tokenize", *inputs, *SETTINGS, "--workers", "2"]


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised, by relative path."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.parts[0] not in OWN_FOLDERS}


def fragments(folder: Path) -> dict[str, int]:
    """The fragments that stand, with when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("_store/*/fragments/*/*.parquet")}


def processes_of(folder: Path) -> list[psutil.Process]:
    """What runs of a Ray whose files lie in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.2)


def ended(slurm: Slurm, job: str, log: Path) -> dict[str, str]:
    """What is known of a job that ended by itself."""
    wait_for(lambda: slurm.state(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"), f"job {job}: {log}")
    return slurm.state(job)


def test_tokenize_sh_queued_again_in_mid_run_ends_in_the_same_bytes(slurm, submit, place, undisturbed):
    job = submit("again", "--nodes=2")
    wait_for(lambda: len(fragments(place / "again")) >= 6, "the first fragments")
    slurm.ask("scontrol", "requeue", job)
    wait_for(lambda: slurm.state(job)["JobState"] == "PENDING", "the job to be queued again")
    stood = fragments(place / "again")
    assert len(stood) < 48, "the job was over before it was queued again"
    state = ended(slurm, job, place / "again.log")
    text = (place / "again.log").read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), text
    assert f"run 2 of job {job} on one,two" in text
    assert (place / f"ray-{job}.log").read_text().count("Ray runtime started") == 4, "two nodes in each run"
    assert tree_of(place / "again") == undisturbed
    now = fragments(place / "again")
    assert {name: now[name] for name in stood} == stood, "a unit that stood was computed again"


def test_tokenize_sh_goes_on_by_itself_after_its_time_is_over(slurm, submit, place, undisturbed):
    """Slurm tells the script alone, ahead of the end; the driver drains, and the script queues the job again."""
    job = submit("late")
    wait_for(lambda: len(fragments(place / "late")) >= 6, "the first fragments")
    slurm.ask("scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM@180 sends
    state = ended(slurm, job, place / "late.log")
    text = (place / "late.log").read_text()
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), text
    assert "motion-tokens ended with 143" in text
    assert "stopped by SIGTERM" in text
    assert tree_of(place / "late") == undisturbed


def test_tokenize_sh_leaves_a_cancelled_job_cancelled(slurm, submit, place):
    job = submit("cancelled")
    wait_for(lambda: len(fragments(place / "cancelled")) >= 1, "the first fragment")
    slurm.ask("scancel", job)
    state = ended(slurm, job, place / "cancelled.log")
    time.sleep(3)
    assert (slurm.state(job)["JobState"], state["Restarts"]) == ("CANCELLED", "0")


def test_tokenize_sh_answers_prometheus_where_a_port_is_named(slurm, submit, place):
    port = free_ports(1)[0]
    submit("counted", "--nodes=2", MOTION_TOKENS_METRICS_PORT=str(port), RAY_metrics_report_interval_ms="1000")

    def is_counted() -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply,
        ):
            return b"ray_motion_tokens_windows_total{" in reply.read()
        return False

    wait_for(is_counted, "the job's metrics")


def test_tokenize_sh_ends_with_the_exit_code_of_the_command(slurm, submit, place):
    shutil.move(place / "codec.safetensors", place / "codec.aside")
    try:
        job = submit("wrong")
        state = ended(slurm, job, place / "wrong.log")
    finally:
        shutil.move(place / "codec.aside", place / "codec.safetensors")
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")
