"""One harm to one running job: how it is drawn, when it strikes, what it does.

Knows nothing of what must hold afterwards.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
from campaign_places import Gateway, Place, num_fragments, num_standing, units_computed

from pipeline.storage import Folder

KINDS = ("kill_group", "term", "term_group", "kill_actor", "kill_worker", "remove_node", "s3_restart")
KINDS += ("pause", "take_over")
PLACES = ("local", "s3")
EXECUTORS = ("ray", "local")
EXECUTOR_OF = {"kill_actor": "ray", "kill_worker": "ray", "remove_node": "cluster"}
ALLOWED_EXITS = {
    "kill_group": (-signal.SIGKILL,),
    "term": (143,),
    "term_group": (143,),
    "kill_actor": (75,),
    "kill_worker": (1, 75),
    "remove_node": (75,),
    "s3_restart": (75,),
    "pause": (75,),
    "take_over": (75,),
}
"""How a struck run may end, where it does not end with 0."""
HANGS = 124
"""Stands for the exit code of a run that had to be ended after RUN_LIMIT_S; never allowed."""
NUM_UNITS = 24
MARK = "MOTION_TOKENS_CAMPAIGN"
RUN_LIMIT_S = 240
TAKER_LIMIT_S = 90
"""A stopped run may hold the lock of its output, which whoever takes over waits for: then the run goes on first."""
MOMENT_LIMIT_S = 240
VICTIM_POLL_S = 0.02
EARLY, MIDDLE = 0.15, 0.7
"""Shares of trials struck before the first fragment stands, and while fragments appear; the rest comes later."""


@dataclass(frozen=True)
class Harm:
    """What is done to a run, and when: ``extra_s`` after so many files stand, or after the start for none."""

    kind: str
    executor: str
    place: str
    files: int
    """Fragments, then what the export writes."""
    extra_s: float
    again: str = "local"
    """Who mends it: an executor too; or "call", the plain loop in this process, which has no limit of time."""
    outage_s: float = 0.0
    pause_s: float = 0.0
    """How long the run stands still."""
    seed: int = 0
    """Chooses the victim among several."""


@dataclass(frozen=True)
class Pace:
    """When things happen in an undisturbed run, seconds after its start."""

    first_s: float
    last_s: float
    end_s: float


@dataclass(frozen=True)
class Disturbed:
    """How a run ended that a harm was meant for."""

    exit_code: int
    at_s: float
    """When the harm was done, or the run found ended."""
    is_struck: bool
    victim: str
    stood: int
    """Fragments and exported files that stood at that moment, as far as was seen."""
    is_begun: bool
    """Whether the run had written anything by then."""
    taker: Taker | None = None


@dataclass(frozen=True)
class Taker:
    """How the run ended that took over from a stopped one."""

    exit_code: int
    committed_units: int
    """What it found."""
    computed_units: int
    """What it added."""


def draw_harm(
    kind: str, place: str, num_files: int, chance: random.Random, executors: Sequence[str] = EXECUTORS
) -> Harm:
    """Draw a harm with its moment; `extra_s` is a share yet, of `span_s`.

    Args:
        num_files: fragments and exported files of a run that is done.
        executors: to choose from, where the kind leaves a choice.
    """
    executor = EXECUTOR_OF.get(kind) or chance.choice(executors)
    when = chance.random()
    if when < EARLY:
        files = 0
    elif when < EARLY + MIDDLE or kind == "kill_actor":
        files = chance.randint(1, NUM_UNITS - 1)
    else:
        files = chance.randint(NUM_UNITS, num_files - 1)
    return Harm(
        kind=kind,
        executor=executor,
        place=place,
        files=files,
        extra_s=chance.random(),
        again=executor if chance.random() < 0.25 else "local",
        outage_s=round(chance.uniform(1, 20), 1) if kind == "s3_restart" else 0.0,
        pause_s=round(chance.uniform(1, 20), 1) if kind == "pause" else 0.0,
        seed=chance.randrange(1 << 30),
    )


def span_s(harm: Harm, pace: Pace) -> float:
    """How long after its files stand a harm may still come, seconds."""
    if harm.files == 0:
        return 0.9 * pace.first_s
    if harm.files < NUM_UNITS:
        return (pace.last_s - pace.first_s) / 3  # a run of units shows its fragments together, about four times a job
    return 0.2 * (pace.end_s - pace.last_s)


def start(command: list[str], environment: dict[str, str]) -> psutil.Popen:
    """Start a command in a session of its own, without a word."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return psutil.Popen(command, env={**os.environ, **environment}, start_new_session=True, **silent)


def disturbed_run(command: list[str], harm: Harm, place: Place, output: Folder, grounds) -> Disturbed:
    """Run a command, strike once, and wait for its end."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    begin = time.monotonic()
    process = start(command, {**grounds.environment(harm), MARK: mark})
    try:
        stood = wait_for_moment(process, harm, place, output)
        is_begun = stood > 0 or not harm.kind.startswith("term") or bool(output.list_files())
        taker = None
        if harm.kind == "take_over" and process.poll() is None:
            taker = _take_over(command, mark, harm, output, grounds)
            victim = "all processes"
        else:
            victim = _strike(process, harm, grounds, mark)
        at_s = time.monotonic() - begin
        exit_code = end_of(process)
    finally:
        end_leftovers(mark)
    return Disturbed(exit_code, round(at_s, 2), bool(victim), victim, stood, is_begun, taker)


def wait_for_moment(process: psutil.Popen, harm: Harm, place: Place, output: Folder) -> int:
    """Wait until so many files stand, and then some; return early where the run ends."""
    deadline = time.monotonic() + MOMENT_LIMIT_S
    stood = 0
    while stood < harm.files and process.poll() is None and time.monotonic() < deadline:
        time.sleep(place.poll_s)
        stood = num_standing(output)
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(harm.extra_s)
    return stood


def end_of(process: psutil.Popen) -> int:
    """Wait for a process and return its exit code; one that lasts too long is ended."""
    try:
        return int(process.wait(RUN_LIMIT_S) or 0)
    except psutil.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return HANGS


def _take_over(command: list[str], mark: str, harm: Harm, output: Folder, grounds) -> Taker:
    """Stop a run, let the same command take its output over and end, then let the stopped one go on."""
    stopped = _stop_all(mark)
    committed = num_fragments(output)
    _, records = units_computed(output)
    mine = f"{mark}-taker"
    again = replace(harm, executor=harm.again)
    taking = [*grounds.command(again, output), "--set", "run.when_active=take_over"]
    taker = start(taking, {**grounds.environment(again), MARK: mine})
    try:
        with contextlib.suppress(psutil.TimeoutExpired):
            taker.wait(TAKER_LIMIT_S)
        computed, _ = units_computed(output, records)
        _go_on(stopped)
        return Taker(end_of(taker), committed, computed)
    finally:
        end_leftovers(mine)


def _stop_all(mark: str) -> list[psutil.Process]:
    """Send SIGSTOP to every process of a run."""
    stopped = _marked(mark)
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.suspend()
    return stopped


def _go_on(stopped: list[psutil.Process]) -> None:
    for process in stopped:
        with contextlib.suppress(psutil.Error):
            process.resume()


def _strike(process: psutil.Popen, harm: Harm, grounds, mark: str) -> str:
    """Do the harm and name whom it met; "" where the run had ended already."""
    chance = random.Random(harm.seed)
    if process.poll() is not None:
        return ""
    if harm.kind == "kill_group":
        os.killpg(process.pid, signal.SIGKILL)
        return "process group"
    if harm.kind == "term":
        process.send_signal(signal.SIGTERM)
        return "driver"
    if harm.kind == "term_group":  # as a shell, or Slurm, stops a job
        os.killpg(process.pid, signal.SIGTERM)
        return "process group"
    if harm.kind == "remove_node":
        return str(grounds.cluster.remove_node(chance))
    if harm.kind == "pause":
        stopped = _stop_all(mark)
        time.sleep(harm.pause_s)
        _go_on(stopped)
        return "all processes"
    if harm.kind == "s3_restart":
        return _interrupt(grounds.gateway, harm.outage_s)
    return _kill_workers(process, harm.kind, chance)


def _interrupt(gateway: Gateway, outage_s: float) -> str:
    gateway.kill()
    time.sleep(outage_s)
    gateway.start()
    return "S3 server"


def _kill_workers(process: psutil.Popen, kind: str, chance: random.Random) -> str:
    """Kill all tokenizers and writers, or one of Ray's workers and agents; waits for the first where none runs yet."""
    prefix = "ray::MapWorker" if kind == "kill_actor" else "ray::"
    while process.poll() is None:
        found = children_named(process, prefix)
        if found and kind == "kill_worker":
            found = [chance.choice(found)]
        for _, child in found:
            with contextlib.suppress(psutil.Error):
                child.kill()
        if found:
            return ", ".join(name for name, _ in found)
        time.sleep(VICTIM_POLL_S)
    return ""


def children_named(process: psutil.Process, prefix: str) -> list[tuple[str, psutil.Process]]:
    """Return title and process of all below a process whose title begins so, by title."""
    found = []
    with contextlib.suppress(psutil.Error):
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(child.cmdline()[:1])
                if title.startswith(prefix):
                    found.append((title.strip(), child))
    return sorted(found, key=lambda pair: (pair[0], pair[1].pid))


def end_leftovers(mark: str) -> None:
    """End what a killed driver's Ray left behind, so that trials do not disturb each other."""
    for process in _marked(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _marked(mark: str) -> list[psutil.Process]:
    """Return the processes that a run has started, itself among them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found
