"""Fixtures of whole jobs: small codecs and corpora on disk, and the command line run in this process."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app

OWN_FOLDERS = ("_store", "runs", "report")
PLAIN = ("--set", "gate=off", "--set", "run.report=false")


@dataclass(frozen=True)
class Outcome:
    """What a command printed and returned."""

    code: int
    text: str


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Return a function that runs `motion-tokens ARG...` in this process.

    Without gate and report, unless they are set: random weights would not pass, and pictures take a second.
    """

    def run(*args: object) -> Outcome:
        words = [str(arg) for arg in args]
        if words[0] in ("tokenize", "replay"):
            words[1:1] = PLAIN
        result = CliRunner().invoke(app, words)
        return Outcome(result.exit_code, " ".join(result.output.split()))

    return run


def tiny_motion(seed: int, num_frames: int, dims: int = 4) -> np.ndarray:
    steps = np.random.default_rng(seed).normal(size=(num_frames, dims))
    return (np.cumsum(steps, axis=0) / 3).astype(np.float32)


def npz_bytes(**arrays: object) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 4 dims in Parquet, tar and npz: 30 good ones, one too short, one with NaN, one broken file."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "b").mkdir()
    clips = {f"clip{n:02}": tiny_motion(n, 7 + 3 * n) for n in range(30)}
    names = list(clips)
    rows = {
        "clip_id": names[:10],
        "motion": pa.array([clips[name].tolist() for name in names[:10]], pa.list_(pa.list_(pa.float32(), 4))),
        "fps": [25.0] * 10,
    }
    pq.write_table(pa.table(rows), folder / "a.parquet")
    members = {}
    for name in names[10:20]:
        members[f"{name}.motion.npy"] = npy_bytes(clips[name])
        members[f"{name}.json"] = b'{"fps": 25}'
    write_tar(folder / "b" / "shard.tar", members)
    for name in names[20:]:
        (folder / "b" / f"{name}.npz").write_bytes(npz_bytes(motion=clips[name], fps=25.0))
    (folder / "short.npz").write_bytes(npz_bytes(motion=tiny_motion(99, 4), fps=25.0))
    broken = tiny_motion(98, 40)
    broken[7, 2] = np.nan
    (folder / "nan.npz").write_bytes(npz_bytes(motion=broken, fps=25.0))
    (folder / "broken.npz").write_bytes(npz_bytes(motion=tiny_motion(97, 40), fps=25.0)[:200])
    (folder / "notes.txt").write_text("not motion")
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file whose bytes are promised, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in OWN_FOLDERS:
            found[relative.as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(
        tiny_motion=tiny_motion, npz_bytes=npz_bytes, npy_bytes=npy_bytes, write_tar=write_tar, tree_of=tree_of
    )


@pytest.fixture(scope="session")
def quality_corpus() -> ModuleType:
    """The module quality_corpus.py beside this file."""
    path = Path(__file__).with_name("quality_corpus.py")
    spec = importlib.util.spec_from_file_location("quality_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
