"""Who runs the stages: this process, or Ray. The only place that starts Ray and reads the environment.

Knows how to start and stop, not what a job does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from pipeline.config import Numerics
from pipeline.errors import MotionTokensError
from pipeline.job_config import RunConfig
from pipeline.tokenize_job import Executor

NOISE_SHOWN_BYTES = 4000

RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread that outlives a stopped job starts another Ray
}
"""What a person set stays."""


class Stopped(BaseException):
    """A signal asked the process to stop; raised in the main thread, so that state stays resumable."""


@dataclass(frozen=True)
class Session:
    """An executor and what its start cost."""

    executor: Executor
    start_s: float


@contextmanager
def open_session(run: RunConfig) -> Iterator[Session]:
    """Start what runs the stages, and stop it at the end."""
    begin = time.perf_counter()
    if run.local:
        yield Session(_local_executor(), time.perf_counter() - begin)
        return
    with _ray_running():
        yield Session(_ray_executor(), time.perf_counter() - begin)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `Stopped` while a job runs."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _local_executor() -> Executor:
    from pipeline.codec import numerics_here, pick_device
    from pipeline.plain_loop import build_here, tokenize_here

    device = pick_device()
    return Executor(
        name="local",
        tokenize=tokenize_here,
        build=build_here,
        numerics=lambda: numerics_here(device),
        num_cpus=float(num_cores()),
        num_gpus=float(device.type == "cuda"),
    )


def _ray_executor() -> Executor:
    import ray

    from pipeline.graph import build_with_ray, tokenize_with_ray

    resources = ray.cluster_resources()
    num_gpus = resources.get("GPU", 0.0)
    return Executor(
        name="ray",
        tokenize=tokenize_with_ray,
        build=build_with_ray,
        numerics=lambda: _numerics_of_workers(num_gpus > 0),
        num_cpus=resources.get("CPU", 1.0),
        num_gpus=num_gpus,
    )


def _numerics_of_workers(on_gpu: bool) -> Numerics:
    """Return the numerics of this process, or of a GPU worker where only workers have the GPU."""
    from pipeline.codec import numerics_here, pick_device

    if on_gpu and pick_device().type != "cuda":
        import ray

        probe: Any = ray.remote(num_gpus=1, num_cpus=0)(lambda: numerics_here(pick_device()).model_dump())
        return Numerics.model_validate(ray.get(probe.remote()))
    return numerics_here(pick_device())


@contextmanager
def _ray_running() -> Iterator[None]:
    """Use the Ray that runs in this process or that RAY_ADDRESS names, else start one for this job."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of our own, on this machine only
        quiet.update(address="local", num_cpus=num_cores(), include_dashboard=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ray.init(**quiet)
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray sets its own
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def native_noise_aside() -> Iterator[None]:
    """Keep lines that Ray's native code writes to the terminal apart, and show them after an internal error.

    It warns of every pool of restartable actors. Python's own stderr stays what it is. To be entered before
    anything else that redirects stderr.
    """
    if sys.stderr is not sys.__stderr__:
        yield
        return
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as aside, os.fdopen(os.dup(terminal), "w", buffering=1) as stderr:
        os.dup2(aside.fileno(), 2)
        sys.stderr = stderr
        try:
            yield
        except Exception as error:
            if not isinstance(error, MotionTokensError):
                aside.seek(0)
                stderr.write(aside.read()[-NOISE_SHOWN_BYTES:].decode(errors="replace"))
            raise
        finally:
            sys.stderr = sys.__stderr__
            os.dup2(terminal, 2)
            os.close(terminal)


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
