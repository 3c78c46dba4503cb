"""Who runs the stages: this process, or Ray. The only place that starts Ray and reads the environment.

Knows how to start and stop, not what a job does.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from jobs.ray_environment import set_for_driver
from jobs.submit import TOKEN_HINT
from jobs.supervision import EXIT_STOPPED
from pipeline.errors import ConfigError, IncompleteError, MotionTokensError
from pipeline.executors.executor import Answer, Executor, TokenizeProgress, TokenizeStages
from pipeline.plan.units import Unit
from pipeline.run.account import UnitAccount
from pipeline.run.stopping import Stopped, StopSwitch
from pipeline.run.tasks import Builder, Result, Task
from pipeline.settings.run_config import RunConfig
from pipeline.stages.measure import UnitMeasurer, UnitStatistics
from pipeline.stages.read import UnitReader

NOISE_SHOWN_BYTES = 4000
END_LIMIT_S = 20.0
"""How long after the grace time a stopped command may take to end by itself."""
_STOP_HANDLERS: list[Any] = []
_LAST_RESORTS: list[threading.Timer] = []


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
                _import_ray(is_own=True, metrics_port=run.metrics_port)
                with _torch_imported():
                    stack.enter_context(ray_running(metrics_port=run.metrics_port))
            yield _own_ray_executor(stack, run.metrics_port)


def are_metrics_taken(run: RunConfig) -> bool:
    """Return whether a run's Ray collects metrics: a cluster does, a Ray of our own only where a port is set."""
    return not run.local and (run.metrics_port is not None or _is_cluster_given(run))


def _is_cluster_given(run: RunConfig) -> bool:
    return bool(run.address or os.environ.get("RAY_ADDRESS")) or _is_initialized()


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


@contextmanager
def stop_signals(switch: StopSwitch | None = None) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to a switch; without one, they raise `Stopped` at once.

    A process that does not come to its end afterwards, as Ray's own may not answer, is ended.
    """
    asked = switch or StopSwitch()
    is_outermost = signal.getsignal(signal.SIGTERM) not in _STOP_HANDLERS

    def stop(number: int, frame: FrameType | None) -> None:
        if not _LAST_RESORTS:
            timer = threading.Timer(asked.grace_s + END_LIMIT_S, os._exit, (EXIT_STOPPED,))
            timer.daemon = True
            _LAST_RESORTS.append(timer)
            timer.start()
        asked.on_signal(signal.Signals(number).name)

    _STOP_HANDLERS.append(stop)
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _STOP_HANDLERS.remove(stop)
        while is_outermost and _LAST_RESORTS:
            _LAST_RESORTS.pop().cancel()


def stop_behind(error: BaseException) -> Stopped | None:
    """Return the stop that an error comes from: Ray's compiled code wraps what a signal handler raises in it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, Stopped):
        seen = seen.__cause__ or seen.__context__
    return seen


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
        if not _is_initialized():  # without an import: Ray reads some of its environment when it is imported
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


def _is_initialized() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def ray_running(
    shows_workers: bool = False, address: str | None = None, metrics_port: int | None = None
) -> Iterator[None]:
    """Use the Ray that runs in this process or at an address, else start one on this machine.

    Args:
        shows_workers: what workers print appears here too.
        address: of a cluster; None: what RAY_ADDRESS names, if anything.
        metrics_port: where a Ray that is started here answers Prometheus; None: it collects no metrics.

    Raises:
        IncompleteError: Ray does not start, or no cluster answers.
        ConfigError: the cluster wants a token that this process does not have, or the address is Ray's client's.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    lacking = _import_ray(is_own=not (address or _is_initialized()), metrics_port=metrics_port)
    import ray

    if ray.is_initialized():
        yield
        return
    _check_protocol(address)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": shows_workers}
    if address:
        quiet["address"] = address
        if lacking:
            quiet["runtime_env"] = {"env_vars": lacking}
    else:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of our own, on this machine only
        quiet.update(address="local", num_cpus=num_cores(), include_dashboard=False, _metrics_export_port=metrics_port)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(**quiet)
    except Exception as error:  # a bare one too, where Ray's own processes do not come up
        if stop_behind(error) is not None:
            raise
        raise _no_ray(address, error) from error
    except SystemExit as error:  # Ray sets a handler of its own for SIGTERM, which may come just now
        raise Stopped("SIGTERM") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _import_ray(is_own: bool, metrics_port: int | None) -> dict[str, str]:
    """Import Ray under the environment and the filters of warnings that it is to have.

    Returns:
        What the workers of a cluster may lack of that environment.
    """
    lacking = set_for_driver()
    if is_own:  # on a cluster, what this process counts has to reach its node
        os.environ.setdefault("RAY_enable_metrics_collection", "0" if metrics_port is None else "1")
    with warnings.catch_warnings():  # Ray sets filters of its own when it is imported: they are not kept
        warnings.simplefilter("ignore", category=FutureWarning)
        import ray.data  # noqa: F401 - it is what the filters are for

    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # the retries of a map's tasks have no other place
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors reach us as exceptions
    return lacking


def _check_protocol(address: str | None) -> None:
    if address is not None and address.startswith("ray://"):  # a job gets no further there than its workers' start
        raise ConfigError(
            f"{address}: Ray Data does not work through Ray's client protocol. Run this on a node of the cluster"
            " with --address auto, or hand it in: submit --address http://HOST:8265 COMMAND .."
        )


def _no_ray(address: str | None, error: Exception) -> MotionTokensError:
    """Return what to tell where Ray did not start, or no cluster answers at an address."""
    import ray

    finding = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not address:
        return IncompleteError(f"Ray did not start ({finding}): run the same command again")
    if isinstance(error, ray.exceptions.AuthenticationError):
        return ConfigError(f"the Ray cluster at {address} refused ({finding}). {TOKEN_HINT}")
    return IncompleteError(
        f"no Ray cluster answers at {address} ({finding}): start one (ray start --head), or correct --address or"
        f" RAY_ADDRESS, and run the same command again. {TOKEN_HINT}, where it wants a token"
    )


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


def is_loss_of_ray(error: Exception) -> bool:
    """Return whether an error says that Ray itself, or a worker of it, is gone."""
    if "ray" not in sys.modules:
        return False
    import ray

    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
