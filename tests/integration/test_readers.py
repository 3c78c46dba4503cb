"""Real readers on our output, without this project's code."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def dataset(command, tiny_corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("readers") / "tokens"
    sets = ("--set", "export.windows_per_shard=80", "--set", "export.splits.ratios={train: 0.8, val: 0.2}")
    assert command("tokenize", tiny_corpus, output, "-c", tiny_codec, *sets, "--local").code == 0
    return output


@pytest.fixture(scope="module")
def wanted(dataset):
    shards = json.loads((dataset / "dataset.json").read_text())["shards"]["parquet"]
    rows = [row for shard in shards for row in pq.read_table(dataset / shard["path"]).to_pylist()]
    assert len(rows) > 100
    return {(row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"]) for row in rows}


def test_pandas_reads_the_shards(dataset, wanted):
    import pandas as pd

    frame = pd.concat(pd.read_parquet(path) for path in dataset.glob("parquet/*/*.parquet"))
    found = {(row.clip_id, row.start_frame): (row.prev_bits, row.this_bits) for row in frame.itertuples()}
    assert found == wanted


def test_duckdb_reads_the_shards(dataset, wanted):
    import duckdb

    rows = duckdb.sql(f"SELECT clip_id, start_frame, prev_bits, this_bits FROM '{dataset}/parquet/*/*.parquet'")
    assert {(row[0], row[1]): (row[2], row[3]) for row in rows.fetchall()} == wanted
    drops = duckdb.sql(f"SELECT reason, count(*) FROM '{dataset}/quarantine.parquet' GROUP BY 1 ORDER BY 1")
    assert drops.fetchall() == [("non_finite", 1), ("too_short", 1), ("truncated", 1)]


def test_polars_reads_the_shards(dataset, wanted):
    import polars as pl

    frame = pl.read_parquet(f"{dataset}/parquet/*/*.parquet")
    columns = ("clip_id", "start_frame", "prev_bits", "this_bits")
    found = {(clip, start): (prev, this) for clip, start, prev, this in frame.select(columns).iter_rows()}
    assert found == wanted


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_shards(dataset, wanted, streaming, tmp_path):
    import datasets

    files = {split: f"{dataset}/parquet/{split}/*.parquet" for split in ("train", "val")}
    loaded = datasets.load_dataset("parquet", data_files=files, streaming=streaming, cache_dir=str(tmp_path))
    rows = [row for split in files for row in loaded[split]]
    assert {(row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"]) for row in rows} == wanted


def test_datasets_follows_the_card(dataset, wanted, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(dataset), cache_dir=str(tmp_path))
    assert sum(len(split) for split in loaded.values()) == len(wanted)
    assert set(loaded) == {"train", "val"}


def test_webdataset_reads_the_shards(dataset, wanted):
    import webdataset as wds

    found = {}
    for split in ("train", "val"):
        names = (dataset / "webdataset" / split / "shards.txt").read_text().split()
        urls = [str(dataset / "webdataset" / split / name) for name in names]
        for sample in wds.WebDataset(urls, shardshuffle=False).decode():
            row = sample["json"]
            prev_bits, this_bits = sample["prev.npy"], sample["this.npy"]
            assert prev_bits.dtype == np.uint8
            assert prev_bits.shape == (8, 1)
            found[row["clip_id"], row["start_frame"]] = (prev_bits.tobytes(), this_bits.tobytes())
    assert found == wanted


def test_constants_hold_the_null_codes(dataset, tiny_codec):
    import torch

    from bitwise_vae import load_checkpoint, pack_bits

    model = load_checkpoint(tiny_codec)
    zeros = torch.zeros(1, 5, 4)
    with torch.no_grad():
        wanted = (model.quant_to_vqidx(zeros)[0], model.quant_to_vqidx(zeros, zeros)[1])
    constants = np.load(io.BytesIO((dataset / "constants.npz").read_bytes()), allow_pickle=False)
    assert constants["patch_nums"].tolist() == [1, 2, 5]
    for name, bits in zip(("null_prev", "null_this"), wanted, strict=True):
        assert (constants[name] == pack_bits(bits[0].numpy())).all()


def test_parquet_footer_holds_the_contract(dataset):
    manifest = json.loads((dataset / "dataset.json").read_text())
    for path in dataset.glob("parquet/*/*.parquet"):
        metadata = pq.read_metadata(path)
        assert json.loads(metadata.metadata[b"motion_tokens.contract"]) == manifest["contract"]
        group = metadata.row_group(0)
        bits = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "prev_bits")
        assert bits.compression == "UNCOMPRESSED"
        assert not any("DICTIONARY" in encoding for encoding in bits.encodings)
        assert pq.read_schema(path).field("prev_bits").type.byte_width == 8
