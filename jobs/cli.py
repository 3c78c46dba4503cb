"""The command `motion-tokens`: all its commands, and how it starts."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from functools import partial

from jobs.app import app
from jobs.bench import bench_cli
from jobs.cluster import submit_cli
from jobs.commands.codec import codec_cli
from jobs.commands.dataset import dataset_cli
from jobs.commands.run import run_cli
from jobs.demo import demo_cli
from jobs.deploy import deploy_cli
from jobs.session.supervision import EXIT_STOPPED, is_to_supervise, run_supervised

COMMANDS = (run_cli, dataset_cli, codec_cli, submit_cli, deploy_cli, demo_cli, bench_cli)
"""Modules that register commands on the app when they are imported."""


def main() -> None:
    """Entry point of the console script; a command that runs Ray gets a parent that outlives it."""
    # while no command has handlers, before and at the end
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_STOPPED))
    # when all is done and Python takes its handlers back: how the command ended is settled
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    command = partial(app, prog_name="motion-tokens")
    if is_to_supervise(sys.argv[1:]):
        run_supervised(command)
    else:
        command()


if __name__ == "__main__":
    main()
