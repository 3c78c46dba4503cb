"""SIGTERM and SIGINT: handed to a stop switch, and found again behind the errors they become."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pipeline.run.stopping import Stopped, StopSwitch

EXIT_STOPPED = 143
END_LIMIT_S = 20.0
"""How long after the grace time a stopped command may take to end by itself."""
WATCH_S = 0.005
_STOP_HANDLERS: list[Any] = []
_LAST_RESORTS: list[threading.Timer] = []


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


@contextmanager
def handler_kept(number: signal.Signals) -> Iterator[None]:
    """Put the handler of a signal back, from a thread, whenever native code in the block takes it away."""
    look, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    look.restype = put.restype = ctypes.c_void_p
    look.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    ours, is_over = look(number), threading.Event()

    def watch() -> None:
        while not is_over.wait(WATCH_S):
            if look(number) != ours:
                put(number, ours)

    thread = threading.Thread(target=watch, name="keep-handler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        put(number, ours)


def stop_behind(error: BaseException) -> Stopped | None:
    """Return the stop that an error comes from: Ray's compiled code wraps what a signal handler raises in it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, Stopped):
        seen = seen.__cause__ or seen.__context__
    return seen
