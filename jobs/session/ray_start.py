"""Start Ray here or reach one that runs, and tell its losses and its noise from ours."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from jobs.session.ray_environment import TOKEN_HINT, set_for_driver
from jobs.session.signals import handler_kept, stop_behind
from jobs.session.streams import guarded, part_with
from pipeline.errors import ConfigError, IncompleteError, MotionTokensError
from pipeline.run.stopping import Stopped

NOISE_SHOWN_BYTES = 4000


def is_ray_initialized() -> bool:
    """Return whether this process has a Ray, without importing it."""
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
    lacking = import_ray(is_own=not (address or is_ray_initialized()), metrics_port=metrics_port)
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
        with handler_kept(signal.SIGTERM):  # Ray's native code takes it away, and needs a second after that
            ray.shutdown()


def import_ray(is_own: bool, metrics_port: int | None) -> dict[str, str]:
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
    before = sys.stderr
    if not _is_terminal_of_process(before):
        yield
        return
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as aside, os.fdopen(os.dup(terminal), "w", buffering=1) as file:
        os.dup2(aside.fileno(), 2)
        sys.stderr = stderr = guarded(file)
        try:
            yield
        except Exception as error:
            if not isinstance(error, MotionTokensError):
                aside.seek(0)
                stderr.write(aside.read()[-NOISE_SHOWN_BYTES:].decode(errors="replace"))
            raise
        finally:
            part_with(stderr)
            sys.stderr = before
            os.dup2(terminal, 2)
            os.close(terminal)


def _is_terminal_of_process(stream: TextIO) -> bool:
    """Return whether a stream is the process's standard error itself: a test's is not."""
    try:
        return stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def is_loss_of_ray(error: Exception) -> bool:
    """Return whether an error says that Ray itself, or a worker of it, is gone."""
    if "ray" not in sys.modules:
        return False
    import ray

    return isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
