"""Fragments are created once: whoever writes, however often and whenever, the first bytes stand, whole."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3fs
from hypothesis import HealthCheck, given, settings, strategies as st

from pipeline.storage import Folder, RetryPolicy
from pipeline.storage.files import LocalFiles
from pipeline.storage.remote import S3Files
from pipeline.storage.retries import server_code

SPEC = importlib.util.spec_from_file_location("weather_proxy", Path(__file__).with_name("weather_proxy.py"))
weather_proxy = importlib.util.module_from_spec(SPEC)
sys.modules["weather_proxy"] = weather_proxy
SPEC.loader.exec_module(weather_proxy)

NUM_THREADS, NUM_PROCESSES, NUM_PATHS = 12, 3, 8
QUICK = RetryPolicy(waits_s=(0.01,) * 5)

WRITER = """
import json, sys, time
from pipeline.storage import Folder

url, options, name, num_paths, start_s = json.loads(sys.argv[1])
folder = Folder(url, options)
folder.exists("connected")
time.sleep(max(0, start_s - time.time()))
print(json.dumps([n for n in range(num_paths) if folder.publish_new(f"a/{n}.bin", name.encode() * 1000)]))
"""


@pytest.fixture(params=["local", "moto"])
def folder(request, tmp_path):
    """A folder on a place that decides who was first."""
    if request.param == "local":
        return Folder(str(tmp_path))
    url, options = request.getfixturevalue("moto")
    return Folder(f"{url}/{tmp_path.name}", options)


@pytest.fixture
def blind(monkeypatch):
    """Nobody sees what stands before writing: the server alone decides."""
    monkeypatch.setattr(S3Files, "stands", lambda *_: False)


def race(folder, path):
    """Let many threads create one file at once; return their bytes and who was told to have won."""
    texts = [f"writer {n} ".encode() * 1000 for n in range(NUM_THREADS)]
    gate = threading.Barrier(NUM_THREADS)

    def write(text):
        gate.wait()
        return folder.publish_new(path, text)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return texts, list(pool.map(write, texts))


def test_publish_new_of_many_threads_lets_one_win(folder):
    for n in range(3):
        texts, won = race(folder, f"a/{n}.bin")
        assert won.count(True) == 1
        assert folder.read(f"a/{n}.bin") == texts[won.index(True)]
    assert folder.list_names("a") == ["0.bin", "1.bin", "2.bin"]


def test_publish_new_of_blind_threads_lets_one_win(moto, blind, tmp_path):
    folder = Folder(f"{moto[0]}/{tmp_path.name}", moto[1])
    texts, won = race(folder, "a.bin")
    assert won.count(True) == 1
    assert folder.read("a.bin") == texts[won.index(True)]


def test_publish_new_of_many_processes_lets_one_win(folder):
    start_s = time.time() + 2.5
    names = [f"process {n} " for n in range(NUM_PROCESSES)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, json.dumps([folder.url, folder.options, name, NUM_PATHS, start_s])],
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    won = [json.loads(process.communicate(timeout=60)[0]) for process in started]
    assert sorted(n for paths in won for n in paths) == list(range(NUM_PATHS))
    for name, paths in zip(names, won, strict=True):
        assert all(folder.read(f"a/{n}.bin") == name.encode() * 1000 for n in paths)
    assert folder.list_names("a") == [f"{n}.bin" for n in range(NUM_PATHS)]


def test_publish_new_on_juicefs_leaves_the_first(s3):
    folder = Folder(s3.url("exclusive/first"), s3.options)
    assert folder.publish_new("a/b.bin", b"first")
    assert not folder.publish_new("a/b.bin", b"second")
    assert not folder.publish_new("a/b.bin", b"first")
    assert folder.read("a/b.bin") == b"first"
    texts, won = race(folder, "a/c.bin")
    assert any(won)
    assert folder.read("a/c.bin") in [text for text, is_winner in zip(texts, won, strict=True) if is_winner]
    assert folder.list_names("a") == ["b.bin", "c.bin"]


def test_moto_refuses_a_second_put(moto, blind, tmp_path):
    folder = Folder(f"{moto[0]}/{tmp_path.name}", moto[1])
    filesystem = s3fs.S3FileSystem(**moto[1])
    bucket, key, _ = filesystem.split_path(folder.url_of("a.bin"))
    filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
    with pytest.raises(OSError) as caught:
        filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=b"second", IfNoneMatch="*")
    assert server_code(caught.value) == "PreconditionFailed"
    assert not folder.publish_new("a.bin", b"second")
    assert folder.publish_new("a.bin", b"first")  # refused, and found equal: a lost answer looks like this
    assert folder.read("a.bin") == b"first"


@pytest.mark.parametrize("place", ["moto", "s3"])
def test_publish_new_in_parts(request, monkeypatch, place, tmp_path):
    server = request.getfixturevalue(place)
    if place == "moto":
        monkeypatch.setattr(S3Files, "stands", lambda *_: False)
    url, options = server if place == "moto" else (server.url("exclusive"), server.options)
    folder = Folder(f"{url}/{tmp_path.name}", options)
    data = os.urandom(1 << 20) * 101
    assert folder.publish_new("large.bin", data)
    assert not folder.publish_new("large.bin", data[::-1])
    assert folder.read("large.bin") == data


@pytest.mark.parametrize("fault", ["reset", "lost_answer", "slow_down"])
@pytest.mark.parametrize("place", ["moto", "s3"])
def test_publish_new_counts_its_own_bytes_after_a_lost_answer(request, place, fault, tmp_path):
    class HarmsTheFirstPut(weather_proxy.WeatherProxy):
        def next_fault(self, request):
            return fault if request.command == "PUT" and not self.counts[fault] else ""

    server = request.getfixturevalue(place)
    url, options = server if place == "moto" else (server.url("exclusive"), server.options)
    plain = Folder(f"{url}/{tmp_path.name}", options)
    endpoint = options["client_kwargs"]["endpoint_url"]
    with weather_proxy.running(HarmsTheFirstPut(endpoint, weather_proxy.Weather(), 0)) as proxy:
        client = {**options["client_kwargs"], "endpoint_url": proxy.endpoint}
        folder = Folder(plain.url, {**options, "client_kwargs": client}, QUICK)
        assert folder.publish_new("a.bin", b"ours")
        assert proxy.counts[fault] == 1
        assert not folder.publish_new("a.bin", b"theirs")
    assert plain.read("a.bin") == b"ours"


def test_publish_new_where_the_server_does_not_know_conditions(s3, tmp_path):
    class KnowsNoConditions(weather_proxy.WeatherProxy):
        def next_fault(self, request):
            return "not_implemented" if "If-None-Match" in request.headers else ""

    with weather_proxy.running(KnowsNoConditions(s3.endpoint, weather_proxy.Weather(), 0)) as proxy:
        options = {**s3.options, "client_kwargs": {"endpoint_url": proxy.endpoint}}
        folder = Folder(s3.url(f"exclusive/{tmp_path.name}"), options)
        assert folder.publish_new("a.bin", b"first")
        assert not folder.publish_new("a.bin", b"second")
        assert folder.read("a.bin") == b"first"
        assert proxy.counts["not_implemented"] > 0


def test_publish_new_where_the_disk_knows_no_links(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", fail)
    folder = Folder(str(tmp_path))
    assert folder.publish_new("a.bin", b"first")
    assert not folder.publish_new("a.bin", b"second")
    assert folder.read("a.bin") == b"first"
    assert folder.list_names() == ["a.bin"]


def test_publish_new_believes_a_link_whose_answer_was_lost(tmp_path, monkeypatch):
    link = os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert Folder(str(tmp_path)).publish_new("a.bin", b"1")


def test_publish_new_that_is_tried_again_finds_its_own_bytes(folder, monkeypatch):
    answers = [TimeoutError(), None, TimeoutError(), None]

    def losing_the_answer(publish_new):
        def publish_or_lose(files, path, data):
            is_written, answer = publish_new(files, path, data), answers.pop(0)
            if answer is not None:
                raise answer
            return is_written

        return publish_or_lose

    for kind in (LocalFiles, S3Files):
        monkeypatch.setattr(kind, "publish_new", losing_the_answer(kind.publish_new))
    folder = Folder(folder.url, folder.options, QUICK)
    assert folder.publish_new("a.bin", b"ours")
    assert not folder.publish_new("a.bin", b"theirs")
    assert answers == []
    assert folder.read("a.bin") == b"ours"


class Turns:
    """Runs two writers one step at a time, in an order given from outside; a step ends where the disk is asked."""

    def __init__(self, order):
        self.order, self.left = list(order), {0, 1}
        self.changed = threading.Condition()
        self.mine = threading.local()

    def step(self):
        """Wait until it is this writer's turn."""
        me = getattr(self.mine, "number", None)
        if me is None:
            return
        with self.changed:
            assert self.changed.wait_for(lambda: self._next() == me, timeout=30)
            if self.order:
                self.order.pop(0)
            self.changed.notify_all()

    def _next(self):
        wanted = self.order[0] if self.order else min(self.left)
        return wanted if wanted in self.left else min(self.left)

    def run(self, operations):
        def write(number, operation):
            self.mine.number = number
            try:
                return operation()
            finally:
                with self.changed:
                    self.left.discard(number)
                    self.changed.notify_all()

        with ThreadPoolExecutor(2) as pool:
            return [job.result() for job in [pool.submit(write, n, op) for n, op in enumerate(operations)]]


@pytest.mark.parametrize("has_links", [True, False])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 1), max_size=12), is_same=st.booleans())
def test_publish_new_of_two_writers_in_any_order(tmp_path_factory, has_links, order, is_same):
    folder = Folder(str(tmp_path_factory.mktemp("turns")))
    texts = [b"one" * 100, b"one" * 100 if is_same else b"two" * 100]
    turns = Turns(order)
    link, exists, replace, unlink = os.link, Path.exists, Path.replace, Path.unlink

    def before(function):
        def stepped(*args, **kwargs):
            turns.step()
            return function(*args, **kwargs)

        return stepped

    def no_link(*_):
        raise OSError(errno.EOPNOTSUPP, "no links here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", before(link if has_links else no_link))
        patch.setattr(os, "fsync", before(lambda _: None))
        for name, function in {"exists": exists, "replace": replace, "unlink": unlink}.items():
            patch.setattr(Path, name, before(function))
        won = turns.run([lambda text=text: folder.publish_new("a.bin", text) for text in texts])
    assert any(won)
    assert not (has_links and all(won))
    assert folder.read("a.bin") in [text for text, is_winner in zip(texts, won, strict=True) if is_winner]
    assert folder.list_names() == ["a.bin"]
