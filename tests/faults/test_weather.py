"""S3 in bad weather: refusals, resets, cut bodies and stalls change no byte, and nothing waits for ever."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error
from typer.testing import CliRunner

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from jobs.cli import app
from pipeline.errors import StorageError
from pipeline.storage import Folder, RetryPolicy
from pipeline.storage.retries import RETRY_WAITS_S, with_retries

SPEC = importlib.util.spec_from_file_location("weather_proxy", Path(__file__).with_name("weather_proxy.py"))
weather_proxy = importlib.util.module_from_spec(SPEC)
sys.modules["weather_proxy"] = weather_proxy
SPEC.loader.exec_module(weather_proxy)

Weather, WeatherProxy, running = weather_proxy.Weather, weather_proxy.WeatherProxy, weather_proxy.running

NUM_CLIPS = 12
SEED = 9
QUICK = RetryPolicy(waits_s=(0.01,) * 5)
OWN_FOLDERS = ("_store", "runs", "report")


class Scripted(WeatherProxy):
    """Harms the first requests of one method, one fault each; the others pass."""

    def __init__(self, server, method, *faults, stall_s=2.0):
        super().__init__(server, Weather(stall_s=stall_s), 0)
        self.method, self.faults = method, list(faults)

    def next_fault(self, request):
        return self.faults.pop(0) if request.command == self.method and self.faults else ""


def through(proxy, s3, path, retries=QUICK, **config):
    """A folder on the server behind the proxy; `config` is botocore's."""
    once = {"retries": {"total_max_attempts": 1}, **config}
    options = {**s3.options, "client_kwargs": {"endpoint_url": proxy.endpoint}, "config_kwargs": once}
    return Folder(s3.url(path), options, retries)


@pytest.mark.parametrize("fault", ["slow_down", "reset", "lost_answer", "truncated", "stall"])
def test_read_passes_through_each_fault(s3, fault):
    data = os.urandom(300_000)
    Folder(s3.url("weather/read"), s3.options).publish("a.bin", data)
    with running(Scripted(s3.endpoint, "GET", fault, fault, stall_s=0.1)) as proxy:
        folder = through(proxy, s3, "weather/read")
        assert folder.read("a.bin") == data
        assert folder.read_range("a.bin", 1000, 200_000) == data[1000:200_000]
        assert proxy.counts[fault] == 2


@pytest.mark.parametrize("fault", ["slow_down", "reset", "lost_answer", "stall"])
def test_publish_passes_through_each_fault(s3, fault):
    with running(Scripted(s3.endpoint, "PUT", fault, fault, stall_s=0.1)) as proxy:
        folder = through(proxy, s3, f"weather/publish-{fault}")
        folder.publish("a.bin", b"1" * 1000)
        assert folder.publish_new("b.bin", b"2" * 1000)
        assert proxy.counts[fault] == 2
        assert [(file.path, file.num_bytes) for file in folder.list_files()] == [("a.bin", 1000), ("b.bin", 1000)]


@pytest.mark.parametrize("fault", ["slow_down", "truncated"])
def test_listing_passes_through_each_fault(s3, fault):
    plain = Folder(s3.url("weather/list"), s3.options)
    for name in ("a/1", "a/2", "b"):
        plain.publish(name, b"x")
    with running(Scripted(s3.endpoint, "GET", fault, fault)) as proxy:
        assert [file.path for file in through(proxy, s3, "weather/list").list_files()] == ["a/1", "a/2", "b"]
        assert proxy.counts[fault] == 2


def test_read_that_stalls_is_abandoned_and_tried_again(s3):
    data = os.urandom(1000)
    Folder(s3.url("weather/stalled"), s3.options).publish("a.bin", data)
    with running(Scripted(s3.endpoint, "GET", "stall", stall_s=20)) as proxy:
        began_s = time.monotonic()
        assert through(proxy, s3, "weather/stalled", read_timeout=0.5).read("a.bin") == data
        assert time.monotonic() - began_s < 10


def test_read_that_trickles_ends_at_the_deadline(s3):
    short = RetryPolicy(waits_s=QUICK.waits_s, try_s=0.5, deadline_s=1.5)
    Folder(s3.url("weather/stalled"), s3.options).publish("a.bin", b"x")
    with running(Scripted(s3.endpoint, "HEAD", *["stall"] * 99, stall_s=5)) as proxy:
        began_s = time.monotonic()
        with pytest.raises(StorageError, match=r"cannot read s3://.*a\.bin: .*tried \d times in \d s: run the same"):
            through(proxy, s3, "weather/stalled", short).read("a.bin")
        assert time.monotonic() - began_s < 6


def test_read_that_arrives_cut_is_read_again(tmp_path, monkeypatch):
    folder = Folder(f"memory://{tmp_path.name}", retries=QUICK)
    folder.publish("a.bin", b"0123456789")
    whole, kept = MemoryFileSystem.cat_file, [3, 10, 2, 10]
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **kw: whole(*args, **kw)[: kept.pop(0)])
    assert folder.read("a.bin") == b"0123456789"
    assert folder.read_range("a.bin", 4, 99) == b"456789"
    assert kept == []
    kept += [9] * 6
    with pytest.raises(StorageError, match="9 of 10 bytes arrived; tried 6 times"):
        folder.read("a.bin")


def fails(error, calls):
    """An operation that counts its calls and raises."""

    def operation():
        calls.append(1)
        raise error

    return operation


def test_with_retries_waits_by_chance_of_its_own():
    waits, calls = [], []
    random.seed(0)
    before = random.getstate()
    for _ in range(4):
        with pytest.raises(StorageError, match="tried 6 times"):
            with_retries(fails(TimeoutError(), calls), "read x", RetryPolicy(sleep=waits.append))
    assert len(set(waits)) == 4 * len(RETRY_WAITS_S)
    assert random.getstate() == before


def test_with_retries_begins_no_try_near_the_deadline():
    clock, waits, calls = iter(range(0, 900, 90)), [], []
    policy = RetryPolicy(sleep=waits.append, clock=lambda: next(clock))
    with pytest.raises(StorageError, match=r"cannot read x: TimeoutError; tried 3 times in 270 s: run the same"):
        with_retries(fails(TimeoutError(), calls), "read x", policy)
    assert (len(calls), len(waits)) == (3, 2)


@pytest.mark.parametrize(("code", "num_tries"), [("IncompleteBody", 6), ("NoSuchUpload", 6), ("InvalidArgument", 1)])
def test_with_retries_tries_again_what_was_damaged_on_the_way(code, num_tries):
    error = translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject"))
    calls = []
    with pytest.raises(StorageError):
        with_retries(fails(error, calls), "write x", QUICK)
    assert len(calls) == num_tries


def test_s3_requests_have_deadlines_that_the_user_can_set(s3):
    folder = Folder(s3.url("storage/limits"), {**s3.options, "config_kwargs": {"read_timeout": 7}})
    assert not folder.exists("a.bin")
    config = S3FileSystem.current().s3.meta.config  # of the one that the folder uses
    assert (config.connect_timeout, config.read_timeout) == (5, 7)
    assert config.retries["mode"] == "standard"
    assert folder.options["config_kwargs"] == {"read_timeout": 7}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, s3):
    """Many small clips on S3, one unit each, and a checkpoint on disk."""
    write_motion(s3, "weather/motion", NUM_CLIPS)
    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    checkpoint = tmp_path_factory.mktemp("weather") / "codec.safetensors"
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 0), checkpoint)
    return checkpoint


def write_motion(s3, place, num_clips):
    folder = Folder(s3.url(place), s3.options)
    for n in range(num_clips):
        sink = io.BytesIO()
        steps = np.random.default_rng(n).normal(size=(12 + n % 7, 4))
        np.savez(sink, motion=np.cumsum(steps, axis=0).astype(np.float32) / 3, fps=25.0)
        folder.publish(f"clip{n:03}.npz", sink.getvalue())


def run(s3, endpoint, checkpoint, output, motion="weather/motion", how=("--local",)):
    """Tokenize and verify through an address; return seconds and the promised files."""
    options = f"run.storage_options={json.dumps({'endpoint_url': endpoint})}"
    sets = ["--set", "units.files=1", "--set", "export.windows_per_shard=40", "--set", options]
    sets += ["--set", "gate=off", "--set", "run.report=false"]
    began_s = time.monotonic()
    tokens = s3.url(output)
    result = CliRunner().invoke(app, ["tokenize", s3.url(motion), tokens, "-c", str(checkpoint), *sets, *how])
    assert result.exit_code == 0, result.output
    seconds = time.monotonic() - began_s
    verified = CliRunner().invoke(app, ["verify", tokens, "--set", options])
    assert verified.exit_code == 0, verified.output
    folder = Folder(tokens, s3.options)
    files = {file.path: folder.read(file.path) for file in folder.list_files()}
    return seconds, {path: data for path, data in files.items() if path.partition("/")[0] not in OWN_FOLDERS}


def test_tokenize_in_bad_weather_gives_the_same_bytes(s3, corpus, monkeypatch, record_property):
    monkeypatch.setattr(RetryPolicy, "draw_waits", lambda policy: (wait_s / 20 for wait_s in policy.waits_s))
    calm_s, expected = run(s3, s3.endpoint, corpus, "weather/calm")
    with running(WeatherProxy(s3.endpoint, Weather(stall_s=0.5), SEED)) as proxy:
        rough_s, files = run(s3, proxy.endpoint, corpus, "weather/rough")
        counts = dict(proxy.counts)
    assert files == expected
    for fault in ("slow_down", "reset", "lost_answer", "truncated", "stall"):
        assert counts.get(fault, 0) > 0, counts
    record_property("weather", {**counts, "calm_s": calm_s, "rough_s": rough_s})
    print(f"bad weather: {rough_s:.1f} s, calm {calm_s:.1f} s; {counts}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [("--local",), ("--workers", "2")], ids=["local", "ray"])
def test_how_much_bad_weather_slows_a_job_down(s3, corpus, ray_local, capsys, how):
    how = (*how, "--set", "run.row_bytes=1")  # a task a unit, so that Ray has work to do side by side
    write_motion(s3, "weather/many", 90)
    outputs = [f"weather/{how[0]}-{weather}" for weather in ("calm", "rough")]
    calm_s, expected = run(s3, s3.endpoint, corpus, outputs[0], "weather/many", how)
    with running(WeatherProxy(s3.endpoint, Weather(), SEED)) as proxy:
        rough_s, files = run(s3, proxy.endpoint, corpus, outputs[1], "weather/many", how)
        counts = dict(proxy.counts)
    assert files == expected
    with capsys.disabled():
        print(f"\nbad weather, {' '.join(how)}: {rough_s:.1f} s, calm {calm_s:.1f} s; {counts}")
