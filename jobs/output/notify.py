"""Telling others how a run ended: a command that reads JSON, or a web address that gets it.

Knows no data. Whatever goes wrong here is a warning: the run is what it is.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from subprocess import DEVNULL
from typing import Any
from urllib.parse import urlsplit

from pipeline.settings.run_config import FROM_ENVIRONMENT, NotifyConfig


def notify(config: NotifyConfig, outcome: Mapping[str, Any]) -> list[str]:
    """Tell whoever is to be told of a run's outcome, and return a line for each who could not be.

    Args:
        outcome: plain values; `exit_code` decides whether it is a failure.
    """
    if config.when == "failure" and outcome["exit_code"] == 0:
        return []
    data = (json.dumps(outcome) + "\n").encode()
    findings = []
    if config.command is not None:
        findings.append(_run(config.command, data, config.timeout_s))
    if config.webhook is not None:
        findings.append(_post(config.webhook, data, config.timeout_s))
    return [finding for finding in findings if finding]


def _run(command: str, data: bytes, timeout_s: float) -> str:
    """Run a command with the JSON as its input, without a shell; return what went wrong, empty for nothing.

    Only the program is named: its arguments may hold secrets, and what it prints may show them.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"run.notify.command could not be read: {error}"
    name = words[0] if words else "an empty command"
    try:
        done = subprocess.run(words, input=data, stdout=DEVNULL, stderr=DEVNULL, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"run.notify.command took longer than {timeout_s:g} s and was ended: {name}"
    except (OSError, IndexError) as error:
        return f"run.notify.command could not run: {name}: {error}"
    if done.returncode == 0:
        return ""
    return f"run.notify.command ended with {done.returncode}: {name}; to see why, give it a line of JSON by hand"


def _post(webhook: str, data: bytes, timeout_s: float) -> str:
    """Send the JSON to a web address; return what went wrong, empty for nothing, with the host's name alone.

    The rest of an address is often its secret.
    """
    address = webhook
    if webhook.startswith(FROM_ENVIRONMENT):
        name = webhook.removeprefix(FROM_ENVIRONMENT)
        address = os.environ.get(name, "").strip()
        if not address.startswith(("http://", "https://")):
            return f"run.notify.webhook: the environment variable {name} holds no address with http:// or https://"
    host = "an address that cannot be read"
    try:
        host = urlsplit(address).hostname or host
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as error:
        return f"run.notify.webhook at {host} answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"run.notify.webhook at {host} was not reached: {error.reason}"
    except (OSError, ValueError, HTTPException) as error:
        return f"run.notify.webhook at {host} was not reached: {type(error).__name__}"
