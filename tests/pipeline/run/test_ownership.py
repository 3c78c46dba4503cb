from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from pipeline.errors import ActiveRunError, OwnershipLostError
from pipeline.run.ownership import (
    HEARTBEAT_PATH,
    STALE_S,
    Ownership,
    Ticker,
    heartbeat_here,
    read_heartbeat,
    watch,
)
from pipeline.storage import Folder, RetryPolicy


class Clock:
    """Time that passes in sleeps alone; what happens meanwhile is said beforehand."""

    def __init__(self):
        self.now, self.events = 1000.0, []

    def sleep(self, seconds):
        self.now += seconds
        for at, event in list(self.events):
            if self.now >= at:
                self.events.remove((at, event))
                event()

    def after(self, seconds, event):
        self.events.append((self.now + seconds, event))


class NoTicker(Ticker):
    """Beats when a test says so."""

    def start(self, beat):
        self.beat = beat


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def output(tmp_path, clock):
    return Folder(str(tmp_path / "o"), retries=RetryPolicy(sleep=clock.sleep, clock=lambda: clock.now))


def ownership(output, run_id="mine", when_active="wait", said=None, ticker=None):
    said = [] if said is None else said
    return Ownership(
        output,
        run_id,
        when_active,
        on_wait=lambda other: said.append(other.run_id),
        on_lost=said.append,
        ticker=ticker or NoTicker(),
    )


def far(run_id="other", **changes):
    """A heartbeat of which only its changes can be known."""
    return replace(heartbeat_here(run_id), processes="elsewhere", pid=1, **changes)


def stand(output, heartbeat):
    output.publish(HEARTBEAT_PATH, heartbeat.to_bytes())


def test_an_owner_beats_and_leaves_no_trace(tmp_path):
    output = Folder(str(tmp_path))
    with ownership(output, ticker=Ticker(0.02)).held():
        first = read_heartbeat(output)
        deadline = time.monotonic() + 10
        while read_heartbeat(output).beat < first.beat + 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert watch(output).run_id == "mine"
    assert read_heartbeat(output) is None


def test_a_living_run_is_left_alone(output, clock):
    stand(output, heartbeat_here("other"))
    with pytest.raises(ActiveRunError, match="other"), ownership(output, when_active="leave").held():
        pass
    assert (read_heartbeat(output).run_id, clock.now) == ("other", 1000.0)


def test_a_run_elsewhere_is_left_alone_once_its_beat_changes(output, clock):
    stand(output, far())
    clock.after(4, lambda: stand(output, far(beat=1)))
    with pytest.raises(ActiveRunError, match="other"), ownership(output, when_active="leave").held():
        pass
    assert clock.now - 1000 < 6


@pytest.mark.parametrize("when_active", ["wait", "leave"])
def test_a_run_elsewhere_is_dead_once_it_was_watched_for_long_enough(output, clock, when_active):
    stand(output, far())
    with ownership(output, when_active=when_active).held():
        assert STALE_S <= clock.now - 1000 < STALE_S + 5
        assert read_heartbeat(output).run_id == "mine"


def test_clocks_of_other_hosts_mean_nothing(output, clock):
    """It beats every 5 s, whatever time it thinks it is, and is waited for until it goes."""
    stand(output, far())
    for n in range(1, 60):
        clock.after(5 * n, lambda n=n: stand(output, far(beat=n)))
    clock.after(300, lambda: output.delete(HEARTBEAT_PATH))
    with ownership(output).held():
        assert clock.now >= 1300


def test_a_watcher_that_was_paused_does_not_take_its_own_pause_for_silence(output, clock):
    stand(output, far())
    clock.after(3, lambda: setattr(clock, "now", clock.now + 10 * STALE_S))
    clock.after(3 + 10 * STALE_S + 2, lambda: stand(output, far(beat=1)))
    with pytest.raises(ActiveRunError), ownership(output, when_active="leave").held():
        pass


def test_a_paused_process_of_this_host_is_taken_over_in_the_end(output, clock):
    stand(output, heartbeat_here("paused"))
    with ownership(output).held():
        assert clock.now - 1000 >= STALE_S


def test_a_process_number_says_nothing_in_another_namespace(output, clock):
    """The same boot and host name, and a number that nobody has here: it may live all the same."""
    stand(output, replace(heartbeat_here("other"), processes="same boot/other namespace", pid=2**22 + 1))
    clock.after(4, lambda: stand(output, far(beat=1)))
    with pytest.raises(ActiveRunError), ownership(output, when_active="leave").held():
        pass


@pytest.mark.parametrize("changes", [{"process_start": "12345"}, {"pid": 2**22 + 1}])
def test_a_dead_process_of_this_host_is_taken_over_at_once(output, clock, changes):
    stand(output, replace(heartbeat_here("other"), **changes))
    assert watch(output) is None
    with ownership(output).held():
        assert clock.now == 1000.0


def test_a_process_that_ended_is_dead(output):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    stand(output, replace(heartbeat_here("other"), pid=process.pid))
    assert watch(output) is None


def test_a_living_run_is_waited_for(output, clock):
    said = []
    with ownership(output, "other").held() as other:
        clock.after(3, lambda: output.delete(HEARTBEAT_PATH))
        mine = ownership(output, said=said)
        with mine.held():
            assert (mine.has_waited, read_heartbeat(output).run_id, clock.now) == (True, "mine", 1003.0)
            with pytest.raises(OwnershipLostError):
                other.make_sure()
    assert said == ["other"]


def test_whoever_is_taken_over_learns_it_and_changes_nothing_more(output):
    said, ticker = [], NoTicker()
    with ownership(output, "other", said=said, ticker=ticker).held() as other:
        other.publish({"a": b"1", "b": b"1"})
        with ownership(output, when_active="take_over").held() as mine:
            assert ticker.beat() is False
            assert said == [f"run mine on {os.uname().nodename} took over {output}"]
            for change in (
                other.make_sure,
                lambda: other.publish({"a": b"2"}),
                lambda: other.delete(["b"]),
            ):
                with pytest.raises(OwnershipLostError, match="mine"):
                    change()
            mine.publish({"c": b"3"})
    assert {path: output.read(path) for path in output.list_names() if path in "abc"} == {
        "a": b"1",
        "b": b"1",
        "c": b"3",
    }


def test_a_missing_heartbeat_is_a_lost_one(output):
    with ownership(output).held() as owner:
        output.delete(HEARTBEAT_PATH)
        with pytest.raises(OwnershipLostError, match="owned and released"):
            owner.publish({"a": b"1"})
        assert not output.exists("a")
        stand(output, far())
        with pytest.raises(OwnershipLostError):  # for good: whatever it decided is of before
            owner.make_sure()
    assert read_heartbeat(output).run_id == "other"


def test_whatever_fails_after_a_takeover_is_a_lost_ownership(output):
    other, mine = ownership(output, "other"), ownership(output, when_active="take_over")
    with pytest.raises(OwnershipLostError, match="owned and released") as caught, other.held(), mine.held():
        raise FileNotFoundError("deleted by the other run")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_what_fails_under_an_owner_is_told_as_it_is(output):
    with pytest.raises(FileNotFoundError), ownership(output).held():
        raise FileNotFoundError("a")
    assert read_heartbeat(output) is None


def test_a_late_beat_does_not_take_the_output_back(output):
    ticker = NoTicker()
    mine = ownership(output, when_active="take_over")
    with ownership(output, "other", ticker=ticker).held(), mine.held():
        assert ticker.beat() is False
        mine.make_sure()


def test_of_many_who_wait_one_at_a_time_owns(tmp_path):
    """Eight threads, real time: between make_sure and the end of a publication nobody else's begins."""
    inside, most, order = [], [], []

    def run(name):
        output = Folder(str(tmp_path), retries=RetryPolicy(sleep=lambda s: time.sleep(s / 200)))
        owner = ownership(output, name)
        with owner.held():
            inside.append(name)
            most.append(len(inside))
            owner.publish({"shared": name.encode()})
            order.append(name)
            inside.remove(name)

    threads = [threading.Thread(target=run, args=(f"run{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (max(most), len(order)) == (1, 8)
    assert (tmp_path / "shared").read_text() == order[-1]


def test_publish_in_a_folder_of_the_output_counts_from_there(output):
    with ownership(output).held() as owner:
        owner.publish({"x": b"1"}, output.child("_store/a"))
        assert output.read("_store/a/x") == b"1"
        owner.delete(["x"], output.child("_store/a"))
        assert not output.exists("_store/a/x")
        with pytest.raises(ValueError, match="not in"):
            owner.publish({"x": b"1"}, Folder("/elsewhere"))


def test_a_file_that_is_nobodys_heartbeat_is_waited_out(output, clock):
    output.publish(HEARTBEAT_PATH, b'{"run_id"')
    assert watch(output) is None
    with ownership(output).held():
        assert clock.now - 1000 >= STALE_S


def test_a_heartbeat_is_json_without_a_time(output):
    with ownership(output).held():
        fields = json.loads(output.read(HEARTBEAT_PATH))
    assert set(fields) == {"run_id", "host", "processes", "pid", "process_start", "beat"}
