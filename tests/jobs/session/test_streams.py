"""Who reads what a command prints goes away: real processes, real pipes, a device that is always full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.session.streams import guarded, part_with
from pipeline.dataset.manifest import read_manifest
from pipeline.storage import Folder
from pipeline.verify.verify_dataset import verify_dataset

COMMAND = (sys.executable, "-m", "jobs.cli")
WORK = ("--local", "--set", "gate=off", "--set", "run.report=false")


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_job):
    """Motion, a codec, and tokens of them."""
    folder = write_job(tmp_path_factory.mktemp("streams"), 6, 5)
    subprocess.run([*COMMAND, *tokenize(folder, folder / "tokens")], check=True, capture_output=True)
    return folder


def tokenize(place: Path, output: Path, *more: str) -> list[str]:
    words = ["tokenize", str(place / "motion"), str(output), "-c", str(place / "codec.safetensors"), *WORK]
    return [*words, "--set", "units.files=1", *more]


def run_into_closed_pipe(words: list[str], stream: str = "stdout") -> tuple[int, str]:
    """Run a command whose reader has gone; return its exit code and what the other stream got."""
    inlet, outlet = os.pipe()
    os.close(inlet)
    other = "stderr" if stream == "stdout" else "stdout"
    ended = subprocess.run([*COMMAND, *words], **{stream: outlet, other: subprocess.PIPE}, check=False)
    os.close(outlet)
    return ended.returncode, getattr(ended, other).decode()


@pytest.mark.parametrize("more", [(), ("--log-format", "json")])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_and_publishes_when_its_reader_is_gone(place, tmp_path, stream, more):
    code, _ = run_into_closed_pipe(tokenize(place, tmp_path / "o", *more), stream)
    folder = Folder(str(tmp_path / "o"))
    assert code == 0
    assert verify_dataset(folder, read_manifest(folder), lambda path: None).is_sound


def test_work_that_fails_keeps_its_exit_code_when_its_reader_is_gone(place, tmp_path):
    assert run_into_closed_pipe(tokenize(place, tmp_path / "o", "--max-runtime", "0s"), "stderr")[0] == 75
    missing = ["tokenize", str(tmp_path / "missing"), str(tmp_path / "o"), "-c", "demo", "--local"]
    assert run_into_closed_pipe(missing, "stderr")[0] == 2


def test_work_goes_on_when_its_log_is_on_a_full_disk(place, tmp_path):
    with Path("/dev/full").open("w") as full:
        words = [*COMMAND, *tokenize(place, tmp_path / "o", "--log-format", "json")]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "o" / "dataset.json").exists()


@pytest.mark.parametrize(
    "words",
    ["verify TOKENS", "inspect TOKENS", "diff TOKENS TOKENS", "runs TOKENS", "verify --help"],
)
def test_a_command_that_only_reads_ends_quietly_when_its_reader_is_gone(place, words):
    code, said = run_into_closed_pipe(words.replace("TOKENS", str(place / "tokens")).split())
    assert (code, said) == (141, "")


def test_a_command_that_only_reads_says_that_its_output_is_on_a_full_disk(place):
    with Path("/dev/full").open("w") as full:
        words = [*COMMAND, "verify", str(place / "tokens")]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == os.EX_IOERR
    assert "cannot write standard output: No space left" in ended.stderr


def test_a_command_in_a_pipe_prints_what_it_prints_to_a_file(place):
    words = [*COMMAND, "verify", str(place / "tokens")]
    piped = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "sound" in piped.stdout
    assert piped.stderr == ""


@pytest.mark.parametrize("closed", ["0>&- >&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("inspect nowhere", 2)])
def test_a_command_without_a_stream_ends_as_it_would_have(closed, words, code):
    line = f"{sys.executable} -m jobs.cli {words} {closed}"
    assert subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=False).returncode == code


def test_the_file_of_json_is_written_though_nobody_reads_the_rest(place, tmp_path):
    words = ["diff", str(place / "tokens"), str(place / "tokens"), "--json", str(tmp_path / "d.json")]
    assert run_into_closed_pipe(words)[0] == 0
    assert (tmp_path / "d.json").exists()


def test_part_with_leaves_a_file_that_took_its_number_alone(tmp_path):
    with (tmp_path / "a").open("w") as file:
        stream = guarded(file)
        stream.write("before")
        part_with(stream)
        number = file.fileno()
    with (tmp_path / "b").open("w") as other:
        assert other.fileno() == number
        stream.write("late\n")
        stream.flush()
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("before", "")


def test_work_that_cannot_be_written_ends_with_74(place, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "runs").write_text("a file where a folder is to be")
    ended = subprocess.run([*COMMAND, *tokenize(place, tmp_path / "o")], capture_output=True, text=True, check=False)
    assert (ended.returncode, "cannot write" in ended.stderr) == (os.EX_IOERR, True), ended.stderr
