"""Who runs the stages: this process, or Ray.

Knows how to start and stop, not what a job does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from jobs.session.ray_start import import_ray, is_ray_initialized, num_cores, ray_running
from pipeline.executors.executor import Answer, Executor, TokenizeProgress, TokenizeStages
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.tasks import Builder, Result, Task
from pipeline.settings.run_config import RunConfig
from pipeline.stages.measure import UnitMeasurer, UnitStatistics
from pipeline.stages.read import UnitReader


@contextmanager
def open_session(run: RunConfig, is_work_certain: Callable[[], bool] = lambda: False) -> Iterator[Executor]:
    """Give what runs the stages, and stop it at the end; a Ray of our own starts only when there is work.

    Args:
        is_work_certain: asked before such a Ray; where there will be work it starts at once, while torch is imported:
            both take seconds, most of them waiting.
    """
    with ExitStack() as stack:
        if run.local:
            yield _local_executor()
        elif _is_cluster_given(run):
            stack.enter_context(ray_running(address=run.address))
            yield _cluster_executor(run)
        else:
            if is_work_certain():
                import_ray(is_own=True, metrics_port=run.metrics_port)
                with _torch_imported():
                    stack.enter_context(ray_running(metrics_port=run.metrics_port))
            yield _own_ray_executor(stack, run.metrics_port)


def are_metrics_taken(run: RunConfig) -> bool:
    """Return whether a run's Ray collects metrics: a cluster does, a Ray of our own only where a port is set."""
    return not run.local and (run.metrics_port is not None or _is_cluster_given(run))


def _is_cluster_given(run: RunConfig) -> bool:
    return bool(run.address or os.environ.get("RAY_ADDRESS")) or is_ray_initialized()


@contextmanager
def _torch_imported() -> Iterator[None]:
    """Import torch, and look for GPUs, beside what the block does; what fails there fails again where it is needed."""

    def load() -> None:
        with suppress(Exception):
            import torch

            torch.cuda.device_count()

    thread = threading.Thread(target=load, name="import-torch")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _local_executor() -> Executor:
    from pipeline.executors.plain_loop import build_here, measure_here, tokenize_here
    from pipeline.stages.codec import pick_device

    return Executor(
        name="local",
        start=lambda: None,
        tokenize=tokenize_here,
        build=build_here,
        measure=measure_here,
        survives=lambda reader, unit: True,  # what kills this process cannot be told from within
        ask_worker=_answer_here,
        cpus_of_nodes=(float(num_cores()),),
        num_gpus=float(pick_device().type == "cuda"),
    )


def _own_ray_executor(stack: ExitStack, metrics_port: int | None) -> Executor:
    """Return an executor on this machine, whose Ray runs from the first `start` until the stack closes."""
    import torch

    def start() -> None:
        if not is_ray_initialized():  # without an import: Ray reads some of its environment when it is imported
            stack.enter_context(ray_running(metrics_port=metrics_port))

    return Executor(
        name="ray",
        start=start,
        tokenize=_tokenize_with_ray,
        build=_build_with_ray,
        measure=_measure_with_ray,
        survives=_survives_with_ray,
        ask_worker=_answer_here,
        cpus_of_nodes=(float(num_cores()),),
        num_gpus=float(torch.cuda.device_count()),
    )


def _cluster_executor(run: RunConfig) -> Executor:
    """Return an executor on the Ray that runs already; GPUs asked for count, for a cluster may grow."""
    import ray

    num_gpus = ray.cluster_resources().get("GPU", 0.0)
    if num_gpus or run.gpus_per_worker:
        share = run.gpus_per_worker or 1.0
        num_gpus = max(num_gpus, share * (run.workers or run.min_workers or 1))
    return Executor(
        name="ray",
        start=lambda: None,
        tokenize=_tokenize_with_ray,
        build=_build_with_ray,
        measure=_measure_with_ray,
        survives=_survives_with_ray,
        ask_worker=partial(_ask_with_ray, run, num_gpus > 0),
        cpus_of_nodes=[node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]],
        num_gpus=num_gpus,
    )


def _tokenize_with_ray(
    runs: Sequence[Sequence[Unit]], stages: TokenizeStages, progress: TokenizeProgress
) -> Iterator[UnitAccount]:
    from pipeline.executors.ray_graph import tokenize_with_ray

    return tokenize_with_ray(runs, stages, progress)


def _build_with_ray(tasks: Sequence[Task], builder: Builder[Task, Result]) -> Iterator[Result]:
    from pipeline.executors.ray_tasks import build_with_ray

    return build_with_ray(tasks, builder)


def _measure_with_ray(
    runs: Sequence[Sequence[Unit]], measurer: UnitMeasurer, num_workers: int | None
) -> Iterator[UnitStatistics]:
    from pipeline.executors.ray_statistics import measure_with_ray

    return measure_with_ray(runs, measurer, num_workers)


def _survives_with_ray(reader: UnitReader, unit: Unit) -> bool:
    from pipeline.executors.ray_tasks import survives_with_ray

    return survives_with_ray(reader, unit)


def _answer_here(ask: Callable[[], Answer]) -> Answer:
    return ask()


def _ask_with_ray(run: RunConfig, on_gpu: bool, ask: Callable[[], Answer]) -> Answer:
    from pipeline.executors.ray_tasks import ask_with_ray

    place = {"GPU": (run.gpus_per_worker or 1.0) if on_gpu else 0.0, "CPU": 0.0 if on_gpu else 1.0}
    return ask_with_ray(ask, place, run.wait_for_resources_s)
