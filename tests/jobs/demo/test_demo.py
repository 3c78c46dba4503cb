"""The demo: every layout, drops by the reasons that were planted, and a second run that finds all done."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.app import check_command
from jobs.demo import demo as demo
from jobs.demo.demo import make_clips, motion_files, next_commands, put, read_snippet, run_demo, window_picture
from jobs.demo_codecs.demo_corpus import FIRST_SEEDS
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import VerifyError
from pipeline.settings.job_config import JobConfig, load_config
from pipeline.storage import Folder

NUM_CLIPS = 24


@pytest.fixture(scope="module")
def config() -> JobConfig:
    return load_config(None, ["run.local=true"])


def run(output: Path, config: JobConfig) -> str:
    console = Console(file=io.StringIO(), width=100)
    run_demo(output, config, console, NUM_CLIPS)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: JobConfig) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("demo")
    return output, run(output, config)


def test_run_demo_keeps_good_clips_and_drops_the_others_by_reason(finished: tuple[Path, str]) -> None:
    manifest = read_manifest(Folder(str(finished[0] / "tokens")))
    assert manifest is not None
    assert manifest.counts["clips"] == NUM_CLIPS
    assert manifest.drops == {"too_short": 8, "truncated": 1, "non_finite": 1}
    assert manifest.num_windows == sum(-(-len(clip.motion) // 100) for clip in make_clips(NUM_CLIPS))


def test_run_demo_passes_the_gate_of_the_shipped_codec_and_writes_a_report(finished: tuple[Path, str]) -> None:
    output, _ = finished
    manifest = read_manifest(Folder(str(output / "tokens")))
    assert manifest is not None
    assert manifest.gate is not None
    assert (manifest.status, manifest.gate.mode, manifest.gate.outcome) == ("complete", "enforce", "passed")
    assert (output / "tokens" / "report" / "report.html").is_file()
    assert not list(output.rglob("*.safetensors"))


def test_run_demo_says_what_matters(finished: tuple[Path, str]) -> None:
    output, text = finished
    assert "--checkpoint demo" in text
    assert "gate passed: 64 windows decode to" in text
    assert "sound" in text
    assert str(output / "tokens" / "report" / "report.html") in text
    assert str(output / "tokens" / "quarantine.parquet") in text
    assert f"motion-tokens verify {output / 'tokens'}" in text
    assert "already complete: every" not in text


def test_run_demo_prints_a_snippet_that_runs(finished: tuple[Path, str]) -> None:
    output, text = finished
    shard = re.search(r"read_table\('(.+)'\)", text)
    assert shard is not None
    names: dict[str, object] = {}
    exec(read_snippet(shard[1], (1, 5, 25, 50, 100)), names)
    scales = names["scales"]
    assert [scale.shape for scale in scales] == [(1, 32), (5, 32), (25, 32), (50, 32), (100, 32)]  # type: ignore[attr-defined]
    row = pq.read_table(output / Path(shard[1]).relative_to(output))["this_bits"][0].as_py()
    assert np.packbits(names["bits"]).tobytes() == row  # type: ignore[call-overload]


def test_run_demo_again_rewrites_nothing(finished: tuple[Path, str], config: JobConfig) -> None:
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    text = run(output, config)
    assert "already complete" in text
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before


def test_run_demo_fails_where_tokens_are_not_sound(finished: tuple[Path, str], config: JobConfig) -> None:
    shard = next((finished[0] / "tokens" / "webdataset").rglob("*.tar"))
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-1] + b"x")
    try:
        with pytest.raises(VerifyError, match="and run the demo again"):
            run(finished[0], config)
    finally:
        shard.write_bytes(sound)


def test_motion_files_hold_every_clip_once_in_several_layouts() -> None:
    clips = make_clips(16)
    files = motion_files(clips)
    assert files == motion_files(make_clips(16))
    assert sorted(name for name in files if not name.startswith("npz/")) == [
        "parquet/flat.parquet",
        "parquet/frames.parquet",
        "tar/named.tar",
        "tar/plain.tar",
    ]
    kinds = {
        name: str(pq.read_schema(io.BytesIO(data)).field("motion").type)
        for name, data in files.items()
        if name.endswith(".parquet")
    }
    assert "fixed_size_list" in kinds["parquet/frames.parquet"]
    assert "fixed_size_list" not in kinds["parquet/flat.parquet"]
    assert all(100 <= len(clip.motion) <= 500 for clip in clips)


def test_demo_speakers_are_none_of_those_that_the_codec_was_trained_on() -> None:
    seeds: list[int] = []

    def noted(num_frames: int, seed: int) -> np.ndarray:
        seeds.append(seed)
        return np.zeros((num_frames, 106), np.float32)

    motion_files(make_clips(demo.NUM_CLIPS, noted), noted)
    assert len(seeds) == demo.NUM_CLIPS + 8
    assert max(seeds) < min(FIRST_SEEDS.values())


def test_put_writes_only_what_differs(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert put(folder, "a/b", b"one")
    assert not put(folder, "a/b", b"one")
    assert put(folder, "a/b", b"two")
    assert (tmp_path / "a" / "b").read_bytes() == b"two"


def test_window_picture_shows_bits_over_one_time_axis() -> None:
    patch_nums = (1, 4)
    bits = np.zeros((5, 8), np.uint8)
    bits[1:, 0] = [1, 0, 1, 0]
    bits[0, 0] = 1
    lines = [line.plain for line in window_picture(bits, patch_nums, 1.0)]
    assert len(lines) == 2 * 3 + 2
    assert lines[0] == f"{'  1 token':<12}{'▀' * 52}"
    assert lines[3] == f"{'  4 tokens':<12}{('▀' * 13 + ' ' * 13) * 2}"
    assert lines[6].endswith("4 s")
    assert max(map(len, lines)) <= 76


def test_next_commands_are_commands(tmp_path):
    for line in next_commands(tmp_path, "clip one").splitlines():
        words = shlex.split(line.partition("#")[0])
        assert check_command(words[words.index("-m") + 2 :] if "-m" in words else words[1:]).params
