"""Signals of a command: kept while native code takes them away, and answered whenever they come."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import pytest

from jobs.session.signals import handler_kept


def test_handler_kept_puts_the_handler_back_that_native_code_takes_away():
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
    try:
        with handler_kept(signal.SIGTERM):
            put = ctypes.pythonapi.PyOS_setsig
            put.argtypes, put.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
            put(signal.SIGTERM, None)  # the default: it would end this process
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        assert got == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_local_job_with_143(write_job, tmp_path, number):
    (tmp_path / "job").mkdir()
    place = write_job(tmp_path / "job", 40, 9)
    words = ["tokenize", str(place / "motion"), str(tmp_path / "o"), "-c", str(place / "codec.safetensors"), "--local"]
    words += ["--set", "units.files=1", "--set", "gate=off", "--set", "run.report=false"]
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "o").glob("_store/*/fragments/*/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, f"stopped by {number.name}" in said) == (143, True), said
