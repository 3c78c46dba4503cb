"""The command `motion-tokens`: all its commands, and how it starts and ends."""

from __future__ import annotations

import atexit
import os
import signal

from jobs.app import app
from jobs.bench import bench_cli
from jobs.cluster import submit_cli
from jobs.commands.codec import codec_cli
from jobs.commands.dataset import dataset_cli
from jobs.commands.run import run_cli
from jobs.demo import demo_cli
from jobs.deploy import deploy_cli
from jobs.session.signals import EXIT_STOPPED
from jobs.session.streams import guarded_streams

COMMANDS = (run_cli, dataset_cli, codec_cli, submit_cli, deploy_cli, demo_cli, bench_cli)
"""Modules that register commands on the app when they are imported."""


def main() -> None:
    """Entry point of the console script."""
    for number in (signal.SIGTERM, signal.SIGINT):  # while no command has handlers, before and at the end
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: os._exit(EXIT_STOPPED))
    # when all is done and Python takes its handlers back: how the command ended is settled
    for number in (signal.SIGTERM, signal.SIGINT):
        atexit.register(signal.signal, number, signal.SIG_IGN)
    with guarded_streams():
        app(prog_name="motion-tokens")


if __name__ == "__main__":
    main()
