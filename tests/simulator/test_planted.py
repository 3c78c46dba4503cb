"""Mistakes planted into a copy of the program, each found by the histories of test_histories.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = 500

JOB, EXPORT, OWNER = "pipeline/job/tokenize_job.py", "pipeline/job/export_job.py", "pipeline/run/ownership.py"
FOLDER, PUBLISH, SHUFFLE = "pipeline/storage/folder.py", "pipeline/export/publish.py", "pipeline/export/shuffle.py"
CLEAN, REQUEST, STORE = "pipeline/dataset/clean.py", "pipeline/job/request.py", "pipeline/dataset/token_store.py"

LOOKS_AGAIN = "if owner.has_waited or _standing_versions(owner.output) != found.versions:"
IS_MINE = "            if owner is not None and owner.run_id == self._mine.run_id:\n                return\n"
DOES_NOTHING = "record.already_complete = is_whole and not outdated_files(job.output, manifest)"
PUBLISHES = "    owner.publish(exported.contents)\n    publish_manifest(owner, exported.manifest)\n"
KEEPS = "    _keep_version(owner, exported, store, plan)\n"
CLEANS = "owner.delete(file.path for file in files)"

PLANTED = {
    "a run that waited does not look again": [(JOB, LOOKS_AGAIN, "if False:")],
    "a run that did not wait does not look again": [(JOB, LOOKS_AGAIN, "if owner.has_waited:")],
    "an export that waited does not look again": [
        (EXPORT, "job = _prepared(folders, config)  # another run may have", "# another run may have")
    ],
    "a missing heartbeat is taken for its own": [(OWNER, IS_MINE, IS_MINE.replace("not None and", "None or"))],
    "nothing is asked before a change": [
        (OWNER, "if not self._lost:\n            owner =", "if True:\n            return\n            owner =")
    ],
    "clean deletes without being the owner": [
        (CLEAN, CLEANS, "list(map(owner.output.delete, (file.path for file in files)))")
    ],
    "clean looks before it is the owner": [
        (
            CLEAN,
            "    with ownership.held() as owner:",
            "    found = find_outdated(ownership.output, keep)\n    with ownership.held() as owner:",
        ),
        (CLEAN, "        cleaning = find_outdated(owner.output, keep)", "        cleaning = found"),
    ],
    "a heartbeat's age is wall clock against wall clock": [
        (
            OWNER,
            "        if other.is_dead:\n",
            "        if other.is_dead or __import__('time').time() - other.at > STALE_S:\n",
        ),
        (OWNER, "    beat: int = 0\n", "    beat: int = 0\n    at: float = 0.0\n"),
        (OWNER, "beat=self._mine.beat + 1)", "beat=self._mine.beat + 1, at=__import__('time').time())"),
        (
            OWNER,
            "processes_here(), pid, process_start(pid))",
            "processes_here(), pid, process_start(pid), at=__import__('time').time())",
        ),
    ],
    "a process is looked up on this host's name alone": [
        (OWNER, "bool(self.processes) and self.processes == processes_here()", "self.host == platform.node()")
    ],
    "dealt files have fixed names": [
        (SHUFFLE, 'whose=f"{owner.run_id}-{self.digest}"', 'whose="all"'),
    ],
    "the contract is not read back": [
        (JOB, "found = replace(found, job=look_again(found.job))", "pass"),
    ],
    "an output without a contract holds no dataset, whatever a run began there": [
        (REQUEST, 'if others and "_store" not in names:', "if others:")
    ],
    "a run with nothing to do deletes stale lists": [
        (
            JOB,
            DOES_NOTHING,
            "list(map(job.output.delete, outdated_files(job.output, manifest)))\n"
            "    record.already_complete = is_whole",
        ),
    ],
    "uploads of an earlier owner are not ended": [(OWNER, "self.output.abandon_uploads()  #", "pass  #")],
    "a disk is not locked between look and write": [
        (FOLDER, 'self._retry(lambda _: stack.enter_context(self._files.locked()), "write", "")', "pass")
    ],
    "whoever begins replaces what stands by now": [
        (
            OWNER,
            "if self.output.swap(HEARTBEAT_PATH, standing, self._mine",
            "if self.output.swap(HEARTBEAT_PATH, _read(self.output), self._mine",
        )
    ],
    "a heartbeat is released for somebody else": [
        (
            OWNER,
            "if owner is not None and owner.run_id == self._mine.run_id:\n            self.output.swap",
            "if owner is not None:\n            self.output.swap",
        )
    ],
    "a watcher counts on although a beat came": [
        (OWNER, "self._seen, self._unchanged_s = data, 0.0", "self._seen = data")
    ],
    "copies of a version are written after dataset.json": [
        (
            PUBLISH,
            KEEPS + PUBLISHES,
            PUBLISHES + KEEPS,
        )
    ],
    "the record of a version is written before its copies": [
        (
            PUBLISH,
            "    output, contents, version = owner.output",
            "    publish_version_record(owner.output, exported.manifest)\n    output, contents, version = owner.output",
        )
    ],
    "files are deleted before what names them": [
        (CLEAN, "for files in cleaning.outdated.values():", "for files in reversed(cleaning.outdated.values()):")
    ],
    "stale lists are left": [
        (
            JOB,
            DOES_NOTHING,
            "record.already_complete = is_whole",
        ),
        (PUBLISH, "    owner.delete(outdated_files(owner.output, exported.manifest))\n", ""),
    ],
    "fragments are found by their unit alone": [
        (
            STORE,
            'return f"fragments/{unit_key[:2]}/{unit_key}-{stamp}.parquet"',
            'return f"fragments/{unit_key[:2]}/{unit_key}-{0:016x}.parquet"',
        ),
        (STORE, "if (unit.key, unit.stamp) not in committed]", "if unit.key not in {key for key, _ in committed}]"),
    ],
    "clean forgets what the current version names": [
        (CLEAN, 'return None if match[1] in self.versions else "lists"', 'return "lists"'),
    ],
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    for name in ("pipeline", "bitwise_vae", "jobs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("name", PLANTED)
def test_every_old_text_stands_once(name):
    for path, old, new in PLANTED[name]:
        assert (ROOT / path).read_text().count(old) == 1, (path, old)
        assert old != new


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(copy, name):
    before = {path: (copy / path).read_text() for path, _, _ in PLANTED[name]}
    try:
        for path, old, new in PLANTED[name]:
            (copy / path).write_text((copy / path).read_text().replace(old, new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "tests/simulator/test_histories.py",
            "-k",
            "any_history or ends_well",
        ]
        environment = {**os.environ, "SEEDS": str(SEEDS), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, check=False, cwd=copy, env=environment, capture_output=True, text=True)
    finally:
        for path, text in before.items():
            (copy / path).write_text(text)
    assert result.returncode == 1, f"not found: {result.stdout[-2000:]}{result.stderr[-500:]}"
    met = re.search(r"seed (\d+), (\d+) moves", result.stdout) or re.search(
        r"test_a_history_that_was_met\S+", result.stdout
    )
    assert met, result.stdout[-2000:]
    print(f"{name}: {met[0]}")
