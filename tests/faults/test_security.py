"""Files, names and settings from strangers: nothing is run, nothing leaves the output folder, no secret is told."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint
from jobs.cli import app
from pipeline.settings.yaml_text import Yaml12Loader

ROOT = Path(__file__).resolve().parents[2]
CODE = [path for name in ("bitwise_vae", "pipeline", "jobs", "examples") for path in (ROOT / name).rglob("*.py")]

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "pandas"}
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "runpy.run_path"}
MOTION = np.cumsum(np.ones((12, 4), np.float32), axis=0)

ODD_NAMES = [
    "../../x",
    "../../../../../../../../tmp/motion-tokens-was-here",
    "/absolute/x",
    "C:\\windows\\x",
    "..",
    ".",
    "...",
    "./x",
    "x/../../..",
    "a//b",
    ".hidden",
    "con.txt.npy.json",
    "-rf *",
    "$(touch x)`touch x`",
    "%2e%2e%2fx",
    "\u202egnp.x",
    "\u200bno width",
    "a\u0301 a\u00e1",
    "\U0001f642" * 200,
    "x" * 1024,
    "'; DROP TABLE clips; --",
    "[bold red]markup[/bold red]",
    "=cmd|' /C calc'!A0",
]
REFUSED_NAMES = ["", "x" * 1025, "two\nlines", "nul\0byte", "esc\u001b[31mape", "tab\tstop", "c1\u009bcode"]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def run(*args: object) -> tuple[int, str]:
    words = [str(arg) for arg in args]
    if words[0] == "tokenize":
        words[1:1] = ["--set", "gate=off", "--set", "run.report=false"]
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 0), path)
    return path


@pytest.fixture
def place(tmp_path):
    """A folder with `motion/` and one good clip in it, deep inside the folder that is watched for strays."""
    folder = tmp_path / "a" / "b" / "c"
    (folder / "motion").mkdir(parents=True)
    np.savez(folder / "motion" / "good.npz", motion=MOTION, fps=25)
    return folder


def faults_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of whatever loads objects, runs texts, or reads YAML with other than a safe loader."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield node.lineno, str(node.module)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in RUNNERS:
            yield node.lineno, name
        if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
            yield node.lineno, f"{name} with {words}"
        if name in ("torch.load", "torch.jit.load") and words.get("weights_only") != "True":
            yield node.lineno, name
        if name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
            yield node.lineno, f"{name} that does not say allow_pickle=False"
        if re.fullmatch(r"yaml\.(unsafe_|full_)?load(_all)?", name):
            loader = words.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "none")
            if loader not in ("yaml.SafeLoader", "yaml.CSafeLoader", Yaml12Loader.__name__):
                yield node.lineno, f"{name} with {loader}"


def test_source_loads_no_objects_and_runs_no_texts():
    assert issubclass(Yaml12Loader, yaml.SafeLoader)
    assert len(CODE) > 40
    found = {
        f"{path.relative_to(ROOT)}:{line}": what
        for path in CODE
        for line, what in faults_in(ast.parse(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x, yaml.Loader)",
        "yaml.unsafe_load(x)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_scan_finds(text):
    assert list(faults_in(ast.parse(text)))


def test_yaml_tags_make_no_objects(codec, place):
    mark = place / "mark"
    for text in (f"run: !!python/object/apply:os.mkdir ['{mark}']", f"!!python/object/new:os.mkdir ['{mark}']"):
        (place / "run.yaml").write_text(text)
        code, found = run("tokenize", place / "motion", place / "tokens", "-c", codec, "--config", place / "run.yaml")
        assert (code, "is not YAML" in found) == (2, True), found
        code, found = run("tokenize", place / "motion", place / "tokens", "-c", codec, "--set", f"run={text[5:]}")
        assert code == 2, found
    assert not mark.exists()


def test_clips_that_hold_objects_are_not_unpickled(codec, place):
    mark = place / "mark"
    array = np.array([[Payload(mark)] * 4] * 9, object)
    motion = place / "motion"
    np.savez(motion / "bad.npz", motion=array, fps=25)
    np.savez(motion / "bad id.npz", motion=MOTION, fps=25, clip_id=array)
    np.savez(motion / "bad rate.npz", motion=MOTION, fps=array)
    (motion / "bad.npy").write_bytes(npy(array))
    (motion / "pickle.npy").write_bytes(pickle.dumps(Payload(mark)))
    with zipfile.ZipFile(motion / "pickle.npz", "w") as archive:
        archive.writestr("motion.npy", pickle.dumps(Payload(mark)))
    pickled = pickle.dumps(Payload(mark))
    (motion / "bad.tar").write_bytes(tar_of([("a.npy", npy(array)), ("b.npy", pickled), ("b.json", pickled)]))
    table = pa.table({"motion": [pickled], "fps": [25.0]})
    pq.write_table(table, motion / "bad.parquet")
    code, text = run("tokenize", motion, place / "tokens", "-c", codec, "--local")
    assert code == 0, text
    assert not mark.exists()
    reasons = pq.read_table(place / "tokens" / "quarantine.parquet")["reason"].to_pylist()
    assert sorted(reasons) == ["unreadable"] * 8 + ["wrong_dtype"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ""])
@pytest.mark.parametrize("legacy", [True, False])
def test_checkpoints_with_code_are_refused(place, suffix, legacy):
    mark, path = place / "mark", place / f"codec{suffix}"
    torch.save({"state_dict": {"enc_pos_embed": Payload(mark)}}, path, _use_new_zipfile_serialization=not legacy)
    code, text = run("tokenize", place / "motion", place / "tokens", "-c", path, "--local")
    assert code == 2, text
    path.write_bytes(pickle.dumps(Payload(mark)))
    assert run("tokenize", place / "motion", place / "tokens", "-c", path, "--local")[0] == 2
    assert not mark.exists()
    assert not (place / "tokens").exists()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_clip_ids_name_no_path(codec, place, tmp_path):
    """Every odd id in every format, as id, key and file name; nothing but the output folder changes."""
    motion, names = place / "motion", [*ODD_NAMES, *REFUSED_NAMES]
    table = {"clip_id": names, "motion": pa.array([MOTION.tolist()] * len(names), pa.list_(pa.list_(pa.float32())))}
    pq.write_table(pa.table({**table, "fps": [25.0] * len(names)}), motion / "ids.parquet")
    np.savez(motion / "..tricky..npz", motion=MOTION + 1, fps=25)
    keys = [name for name in ODD_NAMES if "\0" not in name]
    (motion / "keys.tar").write_bytes(tar_of([(f"{key}.npy", npy(MOTION + 2)) for key in keys]))
    before = tree(tmp_path)
    code, text = run("tokenize", motion, place / "tokens", "-c", codec, "--local", "--set", "input.fps=25")
    assert code == 0, text
    added = {path for path in tree(tmp_path) - before if not path.startswith("a/b/c/tokens/")}
    assert added == {"a/b/c/tokens"}
    assert not Path("/tmp/motion-tokens-was-here").exists()
    assert run("verify", place / "tokens")[0] == 0

    clips = pq.read_table(place / "tokens" / "index" / "clips.parquet").to_pylist()
    kept = {row["clip_id"] for row in clips if not row["drop_reason"]}
    assert kept >= set(ODD_NAMES)
    dropped = [row for row in clips if row["source"] == "ids.parquet" and row["drop_reason"]]
    assert [row["drop_reason"] for row in dropped] == ["bad_clip_id"] * len(REFUSED_NAMES)
    for row in pq.read_table(place / "tokens" / "quarantine.parquet").to_pylist():
        assert not any(char < " " or "\x7f" <= char < "\xa0" for text in row.values() for char in text)
    for path in (place / "tokens" / "webdataset").rglob("*.tar"):
        with tarfile.open(path) as tar:
            assert all(re.fullmatch(r"[0-9A-Za-z_-]+\.[a-z.]+", member.name) for member in tar)


def test_tar_members_are_never_put_on_the_disk(codec, place, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("../../../out.npy", f"{tmp_path}/absolute.npy", "ok.npy"):
            info = tarfile.TarInfo(name)
            data = npy(MOTION)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"special{kind.decode()}.npy")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    (place / "motion" / "x.tar").write_bytes(stream.getvalue())
    before = tree(tmp_path)
    code, text = run("tokenize", place / "motion", place / "tokens", "-c", codec, "--local", "--set", "input.fps=25")
    assert code == 0, text
    assert {path for path in tree(tmp_path) - before if not path.startswith("a/b/c/tokens")} == set()
    clips = pq.read_table(place / "tokens" / "index" / "clips.parquet").to_pylist()
    assert sum(row["drop_reason"] == "unreadable" for row in clips) == 5
    assert sum(row["drop_reason"] == "" for row in clips) == 4


SECRETS = ("env-5ecret-value", "env-t0ken-value", "url-pa55word", "opt-5ecret-value")
UNREACHABLE = "http://127.0.0.1:9"
OPTIONS = f"run.storage_options={{key: visible-name, secret: {SECRETS[3]}, endpoint_url: '{UNREACHABLE}'}}"
WITH_USER = f"s3://user:{SECRETS[2]}@bucket/motion"
SIGNED = f"https://user:{SECRETS[2]}@127.0.0.1:9/a.npz?X-Amz-Signature={SECRETS[3]}"
SLASHED = f"s3://user:a/{SECRETS[2]}@bucket/motion"

LOCAL = ["tokenize", "motion", "tokens"]
CASES = {
    "plain input": (["tokenize", "s3://bucket/motion", "o"], [75]),
    "input": (["tokenize", WITH_USER, "o"], [2, 75]),
    "output": (["tokenize", "motion", WITH_USER, "--set", OPTIONS], [2, 75]),
    "slash": (["tokenize", SLASHED, "o"], [2, 75]),
    "signed": (["tokenize", SIGNED, "o"], [2, 75]),
    "key beside": (["tokenize", "s3://bucket/x", "o", "--set", OPTIONS, "--set", "run.workers=none"], [2]),
    "list": ([*LOCAL, "--set", f"run.storage_options=[{SECRETS[3]}]"], [2]),
    "unknown key": ([*LOCAL, "--set", f"run.storage_option={{secret: {SECRETS[3]}}}"], [2]),
    "no YAML": ([*LOCAL, "--set", f"run.storage_options={{secret: {SECRETS[3]}"], [2]),
    "not a section": ([*LOCAL, "--set", f"run.storage_options={SECRETS[3]}", "--set", "run.storage_options.a=1"], [2]),
    "file": ([*LOCAL, "--config", "torn.yaml"], [2]),
    "export to": (["export", "finished", WITH_USER], [2, 75]),
    "export from": (["export", WITH_USER, "o"], [2, 75]),
    "verify": (["verify", WITH_USER, "--set", OPTIONS], [2, 75]),
    "finished": (["tokenize", "motion", "finished", "--set", OPTIONS, "--gate", "warn"], [0]),
}
RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from jobs.cli import app
from pipeline.storage import RetryPolicy
RetryPolicy.draw_waits = lambda policy: iter((0.01,))
results = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    results.append([result.exit_code, result.output + repr(result.exception)])
    print("done", file=sys.stderr)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes(codec, tmp_path_factory):
    """Exit code and text of every case, run in a process whose environment holds secrets; and its folder."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "motion").mkdir()
    np.savez(folder / "motion" / "good.npz", motion=MOTION, fps=25)
    (folder / "torn.yaml").write_text(f"run:\n  storage_options: {{secret: {SECRETS[3]}")
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "visible-name",
        "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_SESSION_TOKEN": SECRETS[1],
        "AWS_ENDPOINT_URL": UNREACHABLE,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
    }
    order = sorted(CASES, key=lambda name: name.startswith("export"))  # an export needs the finished one
    needs_codec = {"tokenize": ["-c", str(codec), "--local"], "export": ["--local"], "verify": []}
    commands = [[*CASES[name][0], *needs_codec[CASES[name][0][0]]] for name in order]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(order, json.loads(done.stdout), strict=True)), done.stderr, folder


@pytest.mark.parametrize("case", CASES)
def test_messages_tell_no_secret(outcomes, case):
    code, text = outcomes[0][case]
    assert [secret for secret in SECRETS if secret in text] == []
    assert code in CASES[case][1], text


def test_logs_and_files_hold_no_secret(outcomes):
    _, log, folder = outcomes
    assert [secret for secret in SECRETS if secret in log] == []
    assert (folder / "finished" / "dataset.json").is_file()
    assert list((folder / "finished" / "runs").rglob("run.json"))
    for path in folder.rglob("*"):
        assert not any(secret in str(path) for secret in SECRETS)
        if path.is_file() and path.name != "torn.yaml":
            data = path.read_bytes()
            assert [secret for secret in SECRETS if secret.encode() in data] == [], path
