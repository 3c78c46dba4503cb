"""WebDataset shards as batches: every window once, the order of seed and epoch, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError, ContractMismatchError, InputNotFoundError, StreamStateError, VerifyError
from pipeline.loader import Ranks, TarStream, TokenDataset


def ids(batches: Any) -> list[tuple[str, int]]:
    return [name for batch in batches for name in zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True)]


@pytest.fixture(scope="module")
def all_ids(tokens: Path, loader_tools: Any) -> list[tuple[str, int]]:
    """Every window of the train split, sorted."""
    rows = loader_tools.rows_of(tokens)
    return sorted(zip(rows["clip_id"].to_pylist(), rows["start_frame"].to_pylist(), strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_ranks_and_workers_share_every_window(tokens, all_ids, num_ranks, num_workers):
    seen = []
    for rank in range(num_ranks):
        stream = TarStream(str(tokens), batch_size=20, ranks=Ranks(rank, num_ranks))
        part = ids(DataLoader(stream, batch_size=None, num_workers=num_workers))
        assert part
        seen += part
    assert sorted(seen) == all_ids


def test_batches_hold_what_a_token_stream_s_hold(tokens):
    dataset = TokenDataset(str(tokens))
    batch = next(iter(TarStream(str(tokens), batch_size=20)))
    wanted = dataset.batch([dataset.find(*name) for name in ids([batch])])
    assert set(batch) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(batch[name], value), name
            assert batch[name].dtype == value.dtype
        else:
            assert batch[name] == value, name


def test_order_is_of_seed_and_epoch_and_resumes_with_an_epoch(tokens):
    stream = TarStream(str(tokens), seed=1)
    first = ids(stream)
    assert ids(stream) == first
    stream.set_epoch(1)
    second = ids(stream)
    assert second != first
    assert stream.state_dict() == {"epoch": 1}
    resumed = TarStream(str(tokens), seed=1)
    resumed.load_state_dict(stream.state_dict())
    assert ids(resumed) == second
    other = TarStream(str(tokens), seed=2)
    assert ids(other) != first
    with pytest.raises(StreamStateError, match="without epoch"):
        other.load_state_dict({})


def test_set_epoch_reaches_persistent_workers(tokens):
    stream = TarStream(str(tokens))
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    first = ids(loader)
    stream.set_epoch(1)
    second = ids(loader)
    assert sorted(second) == sorted(first)
    assert second != first


def test_harmed_shards_and_wrong_requests_are_refused(tokens, tmp_path):
    copied = Path(shutil.copytree(tokens, tmp_path / "copied"))
    shards = json.loads((copied / "dataset.json").read_text())["shards"]["webdataset"]
    (first, *_) = (shard["path"] for shard in shards if shard["split"] == "train")
    data = bytearray((copied / first).read_bytes())
    data[700] ^= 1
    (copied / first).write_bytes(data)
    with pytest.raises(VerifyError, match=f"{first} is not what dataset.json names"):
        list(TarStream(str(copied)))
    (copied / first).unlink()
    with pytest.raises(VerifyError, match=f"{first} is missing"):
        list(TarStream(str(copied)))
    with pytest.raises(ConfigError, match="shards of split 'train' for 99 ranks"):
        TarStream(str(copied), ranks=Ranks(0, 99))
    with pytest.raises(InputNotFoundError, match="split 'test'"):
        TarStream(str(copied), "test")
    with pytest.raises(ContractMismatchError, match="fps: wanted"):
        TarStream(str(copied), codec=TokenDataset(str(tokens)).codec.model_copy(update={"fps": 30.0}))
