"""A node is killed and another joins while a job runs: the dataset is byte for byte that of a run without a cluster."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parent))
    beside.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
    from network import network
    from ray_nodes import HERE, RayNodes
    from s3_gateway import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OWN_FOLDERS = ("_store/", "runs/", "report/")
PLAIN = ("--set", "units.files=1", "--set", "gate=off", "--set", "run.report=false")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_job):
    """Motion for a job of some seconds, one unit a clip, and the dataset that a plain loop makes of it."""
    folder = write_job(tmp_path_factory.mktemp("lost"), 24, 3)
    words = ["tokenize", folder / "motion", folder / "expected", "-c", folder / "codec.safetensors", *PLAIN, "--local"]
    command = [sys.executable, "-m", "jobs.cli", *(str(word) for word in words)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def hosts():
    """Five hosts with addresses of their own."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(network(5))
        except FileNotFoundError as error:
            pytest.skip(str(error))
        except PermissionError as error:
            pytest.skip(f"hardware: {error}")
        yield made


@pytest.fixture
def start_nodes():
    """Return a function that starts a cluster, which is ended after the test."""
    with contextlib.ExitStack() as stack:

        def start(hosts, environment=None):
            head, *workers = hosts
            nodes = RayNodes(head, environment)
            stack.callback(nodes.close)
            for host in workers:
                nodes.add(host=host)
            return nodes

        yield start


def promised(folder):
    """Every file of a dataset whose bytes are promised, by relative path."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(OWN_FOLDERS)}


def run_and_lose(nodes, spare, words, has_begun):
    """Hand a job in; once it has begun, add a node on a spare host and kill one with a tokenizer; return its end."""
    command = [sys.executable, "-m", "jobs.cli", "submit", "--address", nodes.server, *(str(word) for word in words)]
    client = subprocess.Popen(
        command, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not has_begun():
            assert client.poll() is None, client.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with nodes.held(nodes.TOKENIZERS):
            assert client.poll() is None
            nodes.add(host=spare)
            tokenizers = [len(found) for found in nodes.hosting(nodes.TOKENIZERS)]
            assert sum(tokenizers) > 0
            nodes.kill(tokenizers.index(max(tokenizers)))
        said, _ = client.communicate(timeout=600)
    finally:
        client.kill()
    return client.returncode, said


def test_a_lost_node_changes_no_byte(corpus, tmp_path, start_nodes):
    nodes = start_nodes([HERE] * 3)
    output = tmp_path / "o"
    words = ["tokenize", corpus / "motion", output, "-c", corpus / "codec.safetensors", *PLAIN, "--workers", 2]
    code, said = run_and_lose(nodes, HERE, words, lambda: list(output.glob("_store/*/fragments/*/*.parquet")))
    assert code == 0, said
    assert promised(output) == promised(corpus / "expected")


def test_hosts_of_their_own_with_storage_on_one(corpus, tmp_path, hosts, start_nodes):
    import s3fs

    store, *computing, spare = hosts
    gateway = Gateway(tmp_path / "s3", store.address, store.prefix)
    try:
        gateway.start()
        remote = s3fs.S3FileSystem(use_listings_cache=False, **gateway.options)
        remote.mkdir("cluster")
        remote.put(str(corpus / "motion"), "cluster/motion", recursive=True)
        remote.put_file(str(corpus / "codec.safetensors"), "cluster/codec.safetensors")
        nodes = start_nodes(computing, gateway.environment)
        place = ["s3://cluster/motion", "s3://cluster/tokens", "-c", "s3://cluster/codec.safetensors"]
        words = ["tokenize", *place, *PLAIN, "--workers", 2]
        fragments = "cluster/tokens/_store/*/fragments/*/*.parquet"
        code, said = run_and_lose(nodes, spare, words, lambda: remote.glob(fragments))
        assert code == 0, said
        remote.get("cluster/tokens", str(tmp_path / "tokens"), recursive=True)
    finally:
        gateway.kill()
    assert promised(tmp_path / "tokens") == promised(corpus / "expected")


def test_a_job_whose_gpu_nodes_are_all_lost_says_so_and_ends_with_75(corpus, tmp_path, start_nodes):
    nodes = start_nodes([HERE, HERE])
    nodes.add(num_cpus=1, num_gpus=1)
    output = tmp_path / "o"
    sets = ("run.gpus_per_worker=1", "run.min_workers=1", "run.wait_for_resources_s=45")
    # four workers, of which one has a place: more rows than it has in work, which alone are lost with it
    words = ["tokenize", corpus / "motion", output, "-c", corpus / "codec.safetensors", *PLAIN, "--workers", 4]
    words += [word for setting in sets for word in ("--set", setting)]
    command = [sys.executable, "-m", "jobs.cli", "submit", "--address", nodes.server, *(str(word) for word in words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    client = subprocess.Popen(command, env=nodes.environment, **pipes)
    try:
        deadline = time.monotonic() + 300
        while not list(output.glob("_store/*/fragments/*/*.parquet")):
            assert client.poll() is None, client.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        nodes.kill(1)
        said, _ = client.communicate(timeout=300)
    finally:
        client.kill()
    told = " ".join(said.split())
    assert client.returncode == 75, said
    assert told.count("the nodes of all tokenizers are lost: waiting 45 s") == 1, said
    assert "the nodes of all tokenizers were lost, and 1 workers of 1 GPU each did not stand within 45 s" in told, said
    assert not (output / "dataset.json").exists()
