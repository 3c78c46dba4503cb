"""Who waited for whom in a run: the clock of a tokenizer, and a sentence or two from the seconds of all stages.

Knows no Ray, storage or tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LITTLE_WAIT = 0.2
"""Share of their time that tokenizers may wait before reading counts as the limit."""


class WorkClock:
    """Books every second of a worker's life once: as waiting, or as work of the call that ends first after it.

    Built by who does the work, once it can; several calls may work at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Args: clock: seconds that only grow."""
        self._clock, self._lock = clock, threading.Lock()
        self._num_calls, self._booked_until = 0, clock()

    @contextmanager
    def working(self) -> Iterator[dict[str, float]]:
        """Time a call: give the seconds `wait` and `tokenize` that are to be booked for it, there once it has ended.

        Two calls that work side by side for a second come to one second together.
        """
        seconds: dict[str, float] = {}
        with self._lock:
            self._num_calls += 1
            waited_s = self._book() if self._num_calls == 1 else 0.0
        try:
            yield seconds
        finally:
            with self._lock:
                self._num_calls -= 1
                seconds.update(wait=waited_s, tokenize=self._book())

    def _book(self) -> float:
        """Return the seconds since the last booking."""
        before, self._booked_until = self._booked_until, self._clock()
        return self._booked_until - before


def who_waits(seconds: Mapping[str, float]) -> str:
    """Say what limited a run; "" where its record does not tell.

    Args:
        seconds: `stage_seconds` of run.json, added over all tasks and tokenizers.
    """
    work_s, wait_s = seconds.get("tokenize", 0.0), seconds.get("wait", 0.0)
    if work_s <= 0:
        return ""
    waited = wait_s / (work_s + wait_s)
    if waited > LITTLE_WAIT:
        return f"Tokenizers waited for motion during {waited:.0%} of their time: {_reading(seconds)}"
    sentence = f"Tokenizers were at work during {1 - waited:.0%} of their time: they are the limit."
    device_s = seconds.get("compute", 0.0)
    if "upload" in seconds:
        sentence += f" The device computed during {device_s / work_s:.0%} of what they worked, {_beside(seconds)}."
    return sentence


def _reading(seconds: Mapping[str, float]) -> str:
    read_s, decode_s = seconds.get("read", 0.0), seconds.get("decode", 0.0)
    if read_s <= 0:
        return "reading is the limit, or the start of its workers."
    share = min(1.0, decode_s / read_s)
    if share > 0.5:
        return f"reading is the limit, {share:.0%} of it decoding: more CPUs help."
    return f"reading is the limit, {1 - share:.0%} of it waiting for storage: more readers, or storage nearby, help."


def _beside(seconds: Mapping[str, float]) -> str:
    names = {"stage": "copying frames", "upload": "uploads", "download": "downloads"}
    return ", ".join(f"{words} took {seconds.get(name, 0.0):.1f} s" for name, words in names.items())
