"""Equal input, spec and numerics, equal files: however and wherever the job ran."""

from __future__ import annotations

import json
import shutil

import pytest

SMALL_UNITS = ("--set", "units.files=3", "--set", "export.windows_per_shard=60")


@pytest.fixture(scope="module")
def reference(command, tiny_corpus, tiny_codec, tools, tmp_path_factory):
    """The dataset of the plain loop."""
    output = tmp_path_factory.mktemp("reference") / "tokens"
    outcome = command("tokenize", tiny_corpus, output, "-c", tiny_codec, *SMALL_UNITS, "--local")
    assert outcome.code == 0, outcome.text
    return tools.tree_of(output)


def test_tokenize_twice_gives_the_same_bytes(command, tiny_corpus, tiny_codec, tools, tmp_path, reference):
    assert command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *SMALL_UNITS, "--local").code == 0
    assert tools.tree_of(tmp_path / "o") == reference


def test_tokenize_of_a_copy_elsewhere_gives_the_same_bytes(
    command, tiny_corpus, tiny_codec, tools, tmp_path, reference
):
    shutil.copytree(tiny_corpus, tmp_path / "moved" / "motion", copy_function=shutil.copyfile)
    outcome = command("tokenize", tmp_path / "moved/motion", tmp_path / "o", "-c", tiny_codec, *SMALL_UNITS, "--local")
    assert outcome.code == 0
    assert tools.tree_of(tmp_path / "o") == reference


def test_tokenize_with_ray_gives_the_same_bytes(
    command, tiny_corpus, tiny_codec, tools, tmp_path, reference, ray_local
):
    """Such a run counts for Prometheus too: nothing of it disturbs the bytes."""
    options = (*SMALL_UNITS, "--workers", 3, "--max-runtime", "1h")
    outcome = command("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *options)
    assert outcome.code == 0, outcome.text
    assert tools.tree_of(tmp_path / "o") == reference
    record = json.loads(next((tmp_path / "o").glob("runs/*/run.json")).read_text())
    assert record["executor"] == "ray"
    assert record["counts"]["windows"] == json.loads(reference["dataset.json"])["counts"]["windows"]


def test_tokenize_from_s3_to_s3_gives_the_same_bytes(
    command, tiny_corpus, tiny_codec, tools, tmp_path, reference, ray_local, s3
):
    from s3fs import S3FileSystem

    motion, tokens = s3.url("same/motion"), s3.url("same/tokens")
    files = S3FileSystem(use_listings_cache=False, **s3.options)
    for path in tiny_corpus.rglob("*"):
        if path.is_file():
            files.pipe_file(f"{motion}/{path.relative_to(tiny_corpus).as_posix()}", path.read_bytes())
    options = json.dumps({"endpoint_url": s3.endpoint})
    checkpoint = s3.url("same/codec.safetensors")
    files.pipe_file(checkpoint, tiny_codec.read_bytes())
    outcome = command(
        "tokenize", motion, tokens, "-c", checkpoint, *SMALL_UNITS, "--set", f"run.storage_options={options}"
    )
    assert outcome.code == 0, outcome.text
    assert command("verify", tokens).code == 0
    files.get(tokens, str(tmp_path / "copy"), recursive=True)
    assert tools.tree_of(tmp_path / "copy") == reference
    again = command("tokenize", motion, tokens, "-c", checkpoint, *SMALL_UNITS, "--local")
    assert (again.code, "already complete" in again.text) == (0, True)


def test_tokenize_again_is_already_complete(command, tiny_corpus, tiny_codec, tools, tmp_path):
    arguments = ("tokenize", tiny_corpus, tmp_path / "o", "-c", tiny_codec, *SMALL_UNITS, "--local")
    assert command(*arguments).code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")}
    again = command(*arguments)
    assert (again.code, "already complete" in again.text) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")} == before


def test_tokenize_computes_only_units_without_a_fragment(command, tiny_corpus, tiny_codec, tools, tmp_path, reference):
    output = tmp_path / "o"
    arguments = ("tokenize", tiny_corpus, output, "-c", tiny_codec, *SMALL_UNITS, "--local")
    assert command(*arguments).code == 0
    fragments = sorted(output.glob("_store/*/fragments/*/*.parquet"))
    lost = fragments[::3]
    kept = {path: path.stat().st_mtime_ns for path in fragments if path not in lost}
    for path in lost:
        path.unlink()
    shutil.rmtree(output / "parquet")
    shutil.rmtree(output / "runs")
    assert command("verify", output).code == 1
    assert command(*arguments).code == 0
    record = json.loads(next(output.glob("runs/*/run.json")).read_text())
    assert record["counts"]["units"] == len(lost)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert tools.tree_of(output) == reference


def test_fragments_do_not_depend_on_how_units_are_packed(command, tiny_corpus, tiny_codec, tmp_path):
    bits = {}
    for name, settings in {"many": ("units.files=1",), "one": ("units.files=1000000",)}.items():
        output = tmp_path / name
        sets = [part for setting in settings for part in ("--set", setting)]
        assert command("tokenize", tiny_corpus, output, "-c", tiny_codec, *sets, "--local").code == 0
        import pyarrow.parquet as pq

        rows = [row for path in output.glob("parquet/*/*.parquet") for row in pq.read_table(path).to_pylist()]
        bits[name] = {(row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"]) for row in rows}
    assert bits["many"] == bits["one"]
    assert len(bits["one"]) > 100
