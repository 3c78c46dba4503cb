"""A parent for a command that runs Ray: tells how it ended where the command itself no longer can.

Ray's native code ends a driver that loses its own node with exit code 1, which means "the data is wrong" here, and the
kernel kills without a word what takes too much memory. So the command runs in a forked child that reports its exit code
before it ends; for a child that ended without a report the parent says what happened, and that the work can continue.
Imports nothing heavy, for the fork comes first. Knows no command.

Both stay in one process group. A group of its own would take the child from the terminal's foreground: Ctrl-Z and
changes of size would miss it, `stty tostop` would halt it, and `kill -9` of the group would spare Ray's processes.
The price: what is sent to the group (Ctrl-C, `ray job stop`) or to all processes of a job (Slurm, systemd) reaches
both, and the parent cannot see whether the child was meant too. So the child notes each signal it gets in a pipe, from
the C handler, whatever Python is busy with, and the parent hands on only what the child has not noted `ECHO_S` later.
Should the child have it pending by then, the kernel makes one of the two.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

EXIT_INCOMPLETE, EXIT_STOPPED = 3, 143
RAY_COMMANDS = frozenset({"tokenize", "plan", "replay", "export", "stats", "train", "demo", "bench"})
WITHOUT_RAY = frozenset({"--local", "--help", "-h"})
STOPS = frozenset({signal.SIGTERM, signal.SIGINT})

ECHO_S = 0.1
"""How much later than the parent a signal that was sent to both may reach the child."""

CONTINUES = "run the same command again, what is committed stays"
_REPORT = 0  # stands before the exit code in the pipe: no signal has this number
_PR_SET_PDEATHSIG = 1


def is_to_supervise(arguments: Sequence[str]) -> bool:
    """Return whether a command line runs Ray, and this process can be forked: on Linux, without threads."""
    if not arguments or arguments[0] not in RAY_COMMANDS or WITHOUT_RAY.intersection(arguments):
        return False
    return sys.platform == "linux" and len(list(Path("/proc/self/task").glob("*"))) == 1


def run_supervised(command: Callable[[], None]) -> None:
    """Run a command in a child and end as it ended; returns in the child only.

    Args:
        command: ends with SystemExit, as a Typer app does.
    """
    inlet, outlet = os.pipe()
    os.set_blocking(inlet, False)
    os.set_blocking(outlet, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the child's end from us
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOPS, signal.SIGCHLD})
    parent, child = os.getpid(), os.fork()
    if child:
        os.close(outlet)
        os._exit(_Supervisor(child, inlet).wait())
    os.close(inlet)
    _die_with(parent)
    signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the command has handlers: an end, not a traceback
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = 1  # of an exception that nobody catches
    try:
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os.write(outlet, bytes([_REPORT, code & 0xFF]))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent ends, however that ends."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


class _Supervisor:
    """Built by the parent after the fork, for one child; ends with it. The stop signals and SIGCHLD are blocked."""

    def __init__(self, child: int, inlet: int) -> None:
        self._child, self._inlet = child, inlet
        self._heard = b""
        self._received: Counter[int] = Counter()

    def wait(self) -> int:
        """Hand signals on until the child has ended; return the exit code, after a word where the child left none."""
        while True:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                return self._exit_code(os.waitstatus_to_exitcode(status))
            number = signal.sigwaitinfo({*STOPS, signal.SIGCHLD}).si_signo
            if number in STOPS:
                self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        """Send the child a signal, unless it has got it already."""
        self._received[number] += 1
        signal.sigtimedwait({signal.SIGCHLD}, ECHO_S)
        if self._noted().count(number) < self._received[number]:
            os.kill(self._child, number)  # at worst a zombie: only `wait` takes it away

    def _noted(self) -> bytes:
        """Return the numbers of the signals that the child got up to now."""
        with suppress(BlockingIOError):
            while chunk := os.read(self._inlet, 4096):
                self._heard += chunk
        return self._heard.partition(bytes([_REPORT]))[0]

    def _exit_code(self, ended_with: int) -> int:
        noted = self._noted()
        report = self._heard[len(noted) + 1 :]
        if report:
            return report[0]
        Console().show_cursor()  # a display that was killed has left it hidden
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        stops = [number for number in STOPS if number in self._received or number in noted]
        if stops:
            console.print(f"stopped by {signal.Signals(stops[0]).name}: {CONTINUES}")
            return EXIT_STOPPED
        console.print(f"[bold red]error:[/bold red] {_what_happened(ended_with)}")
        return EXIT_INCOMPLETE


def _what_happened(ended_with: int) -> str:
    """Say how a child ended that could not, and what to do; signals are negative numbers."""
    if ended_with == -signal.SIGKILL:
        cause = "was killed by SIGKILL, most likely for want of memory (dmesg would say so)"
    elif ended_with < 0:
        cause = f"was ended by {signal.Signals(-ended_with).name}"
    else:
        cause = (
            f"was ended by native code, most likely as Ray's own process on this machine was lost (code {ended_with})"
        )
    return f"the job {cause}: {CONTINUES}"
