from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import ActiveRunError
from pipeline.run.lease import LEASE_PATH, RunLease, active_run, host_here, process_start, read_heartbeat
from pipeline.storage import Folder


@pytest.fixture
def output(tmp_path):
    return Folder(str(tmp_path))


def lease(output, run_id="mine", when_active="wait", said=None):
    said = [] if said is None else said
    return RunLease(
        output,
        run_id,
        when_active,
        on_wait=lambda other: said.append(other.run_id),
        on_lost=said.append,
        beat_s=0.05,
    )


def write_heartbeat(output, **changes):
    pid = os.getpid()
    fields = {"run_id": "other", "host": host_here(), "pid": pid, "process_start": process_start(pid)}
    output.publish(LEASE_PATH, json.dumps({**fields, "beat": time.time(), **changes}).encode())


def test_a_lease_beats_and_leaves_no_trace(output):
    with lease(output).held():
        first = read_heartbeat(output)
        time.sleep(0.2)
        assert read_heartbeat(output).beat > first.beat
        assert active_run(output).run_id == "mine"
    assert read_heartbeat(output) is None


def test_a_live_run_is_left_alone(output):
    write_heartbeat(output)
    with pytest.raises(ActiveRunError, match="other"):
        lease(output, when_active="leave").acquire()
    assert read_heartbeat(output).run_id == "other"


def test_a_live_run_is_waited_for(output):
    said = []
    other = lease(output, "other")
    other.acquire()
    threading.Timer(0.3, other.release).start()
    begin = time.monotonic()
    with lease(output, said=said).held():
        assert time.monotonic() - begin >= 0.25
        assert read_heartbeat(output).run_id == "mine"
    assert said == ["other"]


def test_a_live_run_learns_that_it_was_taken_over(output):
    said = []
    other = lease(output, "other", said=said)
    other.acquire()
    with lease(output, when_active="take_over").held():
        time.sleep(0.2)
        assert said == [f"run mine on {host_here()} took over"]
        other.release()
        assert read_heartbeat(output).run_id == "mine"


def test_a_dead_process_of_this_host_is_taken_over_at_once(output):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    write_heartbeat(output, pid=process.pid, process_start="12345")
    assert active_run(output) is None
    write_heartbeat(output, process_start="another process with this number")
    assert active_run(output) is None


def test_a_run_elsewhere_lives_until_its_beat_is_old(output):
    write_heartbeat(output, host="far", process_start="?")
    assert active_run(output).host == "far"
    write_heartbeat(output, host="far", process_start="?", beat=time.time() - 61)
    assert active_run(output) is None


def test_a_torn_heartbeat_is_no_run(output):
    output.publish(LEASE_PATH, b'{"run_id"')
    assert active_run(output) is None
