"""Whatever is broken is dropped under its own reason, or refused with the right exit code; all good clips arrive."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.contract.drop_reasons import DropReason

FOLDER = Path(__file__).parent


def load(name):
    """Import a module that stands beside this one, for others beside it too."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


bad_arrays, _, _, bad_corpus = map(load, ("bad_arrays", "bad_tars", "bad_tables", "bad_corpus"))

MAX_GROWTH_KB = 64 << 10

READ_ONE = """
import sys
from pathlib import Path
import numpy, pyarrow.parquet
from pipeline.contract.specs import CodecSpec, CorpusSpec, WindowRule
from pipeline.sources.clip import RawClip, prepare_clip
from pipeline.sources.registry import cut_file, read_part
from pipeline.storage import Folder
import pipeline.sources.formats.parquet, pipeline.sources.formats.webdataset

codec = CodecSpec(weights="", statistics="", motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=8, depth=1,
                  num_heads=1, fps=25)
corpus = CorpusSpec(motion_field="motion", clip_id_field=None, motion_dim=None, format="auto", columns=None,
                    fps=None, resample="linear", max_abs_z=None, max_frozen_frames=None, clips="",
                    window=WindowRule(stride=5, tail="shift", phases=0, seed=0), unit_bytes=1 << 27, unit_files=64,
                    precision="float32", batch_size=32)

def peak_kb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

folder = Folder(sys.argv[1])
for file in folder.list_files():
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = peak_kb()
    for part in cut_file(folder, "", file, corpus):
        for clip in read_part(folder, part, corpus, codec):
            if isinstance(clip, RawClip):
                prepare_clip(clip, corpus, codec)
    print(peak_kb() - before, file.path, flush=True)
"""


def run(*args: object) -> tuple[int, str]:
    words = [str(arg) for arg in args]
    if words[0] == "tokenize":
        words[1:1] = ["--set", "gate=off", "--set", "run.report=false"]
    result = CliRunner().invoke(app, words)
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module", params=[name for name in bad_corpus.CORPORA if name != "exploding"])
def tokenized(request, tiny_codec, tmp_path_factory):
    """A corpus, the exit code of its job, and the output."""
    return tokenize(request.param, tiny_codec, tmp_path_factory.mktemp(request.param))


def tokenize(name, codec, folder):
    (folder / "motion").mkdir()
    corpus = bad_corpus.CORPORA[name](folder / "motion")
    settings = [word for setting in corpus.settings for word in ("--set", setting)]
    code, text = run("tokenize", folder / "motion", folder / "tokens", "-c", codec, "--local", *settings)
    assert code == 0, text
    return corpus, folder / "tokens"


def check_reasons(corpus, output):
    found = pq.read_table(output / "quarantine.parquet").to_pylist()
    places = Counter((row["source"], row["where"]) for row in found)
    assert places == Counter((bad.source, bad.where) for bad in corpus.bad)
    by_place = {(row["source"], row["where"]): row for row in found}
    for bad in corpus.bad:
        row = by_place[bad.source, bad.where]
        assert row["reason"] == bad.reason, (bad, row)
        assert bad.detail in row["detail"], (bad, row)
        assert row["clip_id"], bad
        assert len(row["detail"]) <= 2048
        assert row["detail"] or row["reason"] == "duplicate_id"


def check_good(corpus, output):
    clips = pq.read_table(output / "index" / "clips.parquet").to_pylist()
    kept = {row["clip_id"]: row["num_frames"] for row in clips if not row["drop_reason"]}
    assert kept == corpus.good


def test_every_bad_clip_has_its_reason(tokenized):
    check_reasons(*tokenized)


def test_every_good_clip_arrives(tokenized):
    check_good(*tokenized)
    code, text = run("verify", tokenized[1])
    assert code == 0, text


def test_exploding_clips_are_dropped(tiny_codec, tmp_path):
    corpus, output = tokenize("exploding", tiny_codec, tmp_path)
    check_reasons(corpus, output)
    check_good(corpus, output)


def test_corpus_has_forty_kinds_of_all_reasons(tmp_path):
    kinds = []
    for name, write in bad_corpus.CORPORA.items():
        (tmp_path / name).mkdir()
        kinds += write(tmp_path / name).bad
    assert len({(bad.kind, bad.source) for bad in kinds}) >= 100
    assert {bad.reason for bad in kinds} >= {reason.value for reason in DropReason if reason != "crashed"}


def test_bad_clips_take_no_memory(tmp_path):
    """Read one file after another in a process of their own; its peak stays where it was."""
    for name, write in bad_corpus.CORPORA.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    command = [sys.executable, "-c", READ_ONE, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown = {line.split(" ", 1)[1]: int(line.split(" ", 1)[0]) for line in done.stdout.splitlines()}
    assert len(grown) > 100
    assert {path: kb for path, kb in grown.items() if kb > MAX_GROWTH_KB} == {}


def make_nothing(folder):
    pass


def make_words(folder):
    (folder / "motion.txt").write_text("words")


def make_hidden(folder):
    (folder / ".take.npz").write_bytes(bad_arrays.npz(motion=bad_arrays.motion(), fps=25))
    (folder / "_old").mkdir()
    (folder / "_old" / "take.npz").write_bytes(bad_arrays.npz(motion=bad_arrays.motion(), fps=25))


def make_links(folder):
    (folder / "broken.npz").symlink_to("nowhere.npz")
    (folder / "itself.npz").symlink_to("itself.npz")
    (folder / "circle").symlink_to(folder, target_is_directory=True)


def make_pipe(folder):
    os.mkfifo(folder / "pipe.npz")


def make_latin_name(folder):
    (folder / os.fsdecode(b"caf\xe9.npz")).write_bytes(bad_arrays.npz(motion=bad_arrays.motion(), fps=25))


def make_all_bad(folder):
    for kind, data, _, _ in list(bad_arrays.npz_files())[:4]:
        (folder / f"{kind}.npz").write_bytes(data)


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (make_nothing, 2, "holds no file"),
        (make_words, 2, "none with a known suffix"),
        (make_hidden, 2, "holds no file"),
        (make_links, 2, "holds no file"),
        (make_pipe, 2, "holds no file"),
        (make_latin_name, 2, "not UTF-8: rename it"),
        (make_all_bad, 65, "unreadable"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_without_a_good_clip_is_refused(tiny_codec, tmp_path, make, code, words):
    (tmp_path / "motion").mkdir()
    make(tmp_path / "motion")
    found = run("tokenize", tmp_path / "motion", tmp_path / "tokens", "-c", tiny_codec, "--local")
    assert (found[0], words in found[1]) == (code, True), found[1]
    assert not (tmp_path / "tokens" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["nowhere"], "holds no file"),
        (["*.nothing"], "holds no file"),
        (["words.txt"], "no known suffix"),
        (["a=good.npz", "a=good.npz"], "two inputs are called 'a'"),
        (["good.npz", "--set", "input.clips=ids.txt"], "no file at"),
        (["good.npz", "--set", "input.clips=good.npz"], "not UTF-8 text"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_an_input_that_cannot_be_is_refused(tiny_codec, tmp_path, monkeypatch, inputs, words):
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("words")
    Path("good.npz").write_bytes(bad_arrays.npz(motion=bad_arrays.motion(), fps=25))
    at = inputs.index("--set") if "--set" in inputs else len(inputs)
    code, text = run("tokenize", *inputs[:at], "tokens", "-c", tiny_codec, "--local", *inputs[at:])
    assert (code, words in text) == (2, True), text
    assert not Path("tokens").exists()
