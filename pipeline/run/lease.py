"""One run at a time on an output: a heartbeat that others see, wait for, or take over from.

For thrift only: fragments are created once and shards are named by content, so two runs at once lose nothing.
Knows no Ray or torch.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ActiveRunError
from pipeline.storage import Folder

LEASE_PATH = "runs/active.json"
BEAT_S = 5.0
"""Seconds between two beats of a run."""
STALE_S = 60.0
POLL_S = 1.0


@dataclass(frozen=True)
class Heartbeat:
    """Who works on an output, and when it was last known to live."""

    run_id: str
    host: str
    pid: int
    process_start: str
    """Tells a process from a later one with its number."""
    beat: float
    """Unix time, seconds."""

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to be gone: one of this host that does not run any more."""
        return self.host == host_here() and process_start(self.pid) != self.process_start

    @property
    def age_s(self) -> float:
        """Seconds since the last beat."""
        return time.time() - self.beat


def read_heartbeat(output: Folder) -> Heartbeat | None:
    """Return the heartbeat of the run that works on an output, None where none does or it cannot be read."""
    try:
        return Heartbeat(**json.loads(output.read(LEASE_PATH)))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def active_run(output: Folder) -> Heartbeat | None:
    """Return the heartbeat of a run that lives, as far as can be known."""
    heartbeat = read_heartbeat(output)
    if heartbeat is None or heartbeat.is_dead or heartbeat.age_s > STALE_S:
        return None
    return heartbeat


class RunLease:
    """Built by a command for its run; beats in a thread from `acquire` to `release`.

    Args:
        when_active: what to do while another run lives: `wait`, `leave` or `take_over`.
        on_wait: told once whom it waits for.
        on_lost: told that another run took over; called in the thread that beats.
        beat_s: seconds between two beats; others take a run for dead after `STALE_S` without one.
    """

    def __init__(
        self,
        output: Folder,
        run_id: str,
        when_active: str,
        *,
        on_wait: Callable[[Heartbeat], None],
        on_lost: Callable[[str], None],
        beat_s: float = BEAT_S,
    ) -> None:
        self.output, self._run_id, self._beat_s = output, run_id, beat_s
        self._when_active, self._on_wait, self._on_lost = when_active, on_wait, on_lost
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lease while the block runs.

        Raises:
            ActiveRunError: another run lives and `when_active` is `leave`.
        """
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """Become the active run, after waiting for another where that was asked for.

        Raises:
            ActiveRunError: another run lives and `when_active` is `leave`.
        """
        waited = False
        while self._when_active != "take_over" and (other := active_run(self.output)) is not None:
            if self._when_active == "leave":
                raise ActiveRunError(
                    f"run {other.run_id} on {other.host} (process {other.pid}) is active on {self.output}:"
                    " try again later, or take over with --set run.when_active=take_over"
                )
            if not waited:
                self._on_wait(other)
            waited = True
            time.sleep(POLL_S)
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="heartbeat")
        self._thread.start()

    def release(self) -> None:
        """Stop beating, and leave no trace where the lease is still ours."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        heartbeat = read_heartbeat(self.output)
        if heartbeat is not None and heartbeat.run_id == self._run_id:
            self.output.delete(LEASE_PATH)

    def _keep_beating(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                heartbeat = read_heartbeat(self.output)
                if heartbeat is not None and heartbeat.run_id != self._run_id:
                    self._on_lost(f"run {heartbeat.run_id} on {heartbeat.host} took over")
                    return
                self._beat()
            except Exception:  # noqa: BLE001 - the work itself will meet storage that is gone, and say so
                continue

    def _beat(self) -> None:
        pid = os.getpid()
        heartbeat = Heartbeat(self._run_id, host_here(), pid, process_start(pid), time.time())
        self.output.publish(LEASE_PATH, json.dumps(asdict(heartbeat)).encode())


def host_here() -> str:
    """Return a name of this host that a restart of it changes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}/{boot.read_text().strip()[:8] if boot.exists() else ''}"


def process_start(pid: int) -> str:
    """Return when a process of this host started, in ticks of its clock; empty where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self").exists() else "unknown"
    return "" if fields[0] == "Z" else fields[19]
