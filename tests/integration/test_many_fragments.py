"""A hundred thousand fragments are recognised from listings alone: fast, in little memory, no byte of them read.

The fragments are empty files under their right names, so that reading any of them as Parquet would fail; besides,
every way to read through a Folder raises in the process that is measured. On S3 they are filled in by `juicefs sync`,
which writes into the volume of the running gateway beside it (two minutes; 100,000 requests to put them take six or
more): what is measured goes through the S3 server alone, 256 listings.

Most of the time on S3 is the test server's own: it needs more than two seconds of a processor for one of ours, some
33 in all. On two cores the limit holds only while little else runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.dataset.token_store import TokenStore

NUM_FRAGMENTS, NUM_MISSING = 100_000, 5
MAX_LOCAL_S, MAX_S3_S, MAX_MIB = 10.0, 30.0, 300
TRIES = 2
"""The better of two counts: other work on the machine may slow one down."""
STAMP = "0123456789ab"

RECOGNISE = """
import json, re, sys, time
from pathlib import Path

def refuse(self, path, *rest):
    raise AssertionError(f"{path} was read")

from pipeline.storage import Folder
Folder.read = Folder.read_range = Folder.open = Folder.stat = refuse

from pipeline.plan.units import Unit
from pipeline.sources.clip import Part
from pipeline.dataset.token_store import TokenStore, missing_units

store = TokenStore(Folder(sys.argv[1], json.loads(sys.argv[2])))
planned = [line.split() for line in sys.stdin]
units = [Unit(key, stamp, 1, (Part("", f"{key}.npz", "npz"),)) for key, stamp in planned]
begin, cpu = time.monotonic(), time.process_time()
missing = missing_units(store, units)
seconds, cpu_s = time.monotonic() - begin, time.process_time() - cpu
mib = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
found = store.list_fragments() == {(key, stamp) for key, stamp in planned} - {(u.key, u.stamp) for u in missing}
print(json.dumps({"s": seconds, "cpu_s": cpu_s, "mib": mib, "found": found, "missing": [u.key for u in missing]}))
"""
"""Peak memory is VmHWM: getrusage would count what the process was before its exec, pytest."""


@pytest.fixture(scope="module")
def keys():
    return sorted(hashlib.sha256(str(number).encode()).hexdigest()[:20] for number in range(NUM_FRAGMENTS))


@pytest.fixture(scope="module")
def fragments(keys, tmp_path_factory):
    """A local store of as many empty fragments; the last few keys have none."""
    folder = tmp_path_factory.mktemp("many")
    for prefix in {key[:2] for key in keys}:
        (folder / TokenStore.fragment_path(prefix, STAMP)).parent.mkdir(parents=True)
    for key in keys[:-NUM_MISSING]:
        (folder / TokenStore.fragment_path(key, STAMP)).touch()
    return folder


def recognise(url, options, keys):
    """Return the best account of what is missing from a plan, each from a process of its own."""
    command = [sys.executable, "-c", RECOGNISE, url, json.dumps(options)]
    planned = "\n".join(f"{key} {STAMP}" for key in keys)
    accounts = []
    for _ in range(TRIES):
        done = subprocess.run(command, input=planned, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        accounts.append(json.loads(done.stdout))
        assert accounts[-1]["missing"] == keys[-NUM_MISSING:]
        assert accounts[-1]["found"]
    return min(accounts, key=lambda account: account["s"])


def tell(capsys, place, account):
    with capsys.disabled():
        told = f"{account['s']:.1f} s ({account['cpu_s']:.1f} s of a processor), {account['mib']:.0f} MiB at most"
        print(f"\n{NUM_FRAGMENTS:,} units recognised, {place}: {told}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_missing_recognises_many_local_fragments_by_listing(fragments, keys, capsys):
    account = recognise(str(fragments), {}, keys)
    tell(capsys, "local", account)
    assert account["s"] < MAX_LOCAL_S
    assert account["mib"] < MAX_MIB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_missing_recognises_many_s3_fragments_by_listing(fragments, keys, s3, tmp_path, capsys):
    url = s3.url("many/store")
    address = s3.endpoint.removeprefix("http://")
    gateway = next(child for child in psutil.Process().children() if child.cmdline()[-1:] == [address])
    program = shutil.which("juicefs", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(
        [program, "sync", "--threads", "16", f"{fragments}/", "jfs://VOLUME/many/store/"],
        env={**os.environ, "VOLUME": gateway.cmdline()[-2], "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    account = recognise(url, s3.options, keys)
    tell(capsys, "S3", account)
    assert account["s"] < MAX_S3_S
    assert account["mib"] < MAX_MIB
