"""WebDataset shards as batches: every window once, the order of seed and epoch, and refusals."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError, ContractMismatchError, InputNotFoundError, StreamStateError, VerifyError
from pipeline.loader import Ranks, TarSampleStream, TarStream, TokenDataset, TokenStream


def ids(batches: Any) -> list[tuple[str, int]]:
    return [name for batch in batches for name in zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True)]


def assert_equal(batch: Any, wanted: Any) -> None:
    """Make sure that two batches hold the same, types and shapes included."""
    assert set(batch) == set(wanted)
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(batch[name], value), name
            assert batch[name].dtype == value.dtype
        else:
            assert batch[name] == value, name


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


def test_workers_for_which_no_shard_is_left_have_no_batch(tokens, all_ids):
    stream = TarStream(str(tokens), batch_size=20)
    num_shards = sum(shard.split == "train" for shard in stream.manifest.shards["webdataset"])
    assert sorted(ids(DataLoader(stream, batch_size=None, num_workers=num_shards + 1))) == all_ids


def test_tars_on_s3_give_the_same_batches(tokens, s3):
    s3fs.S3FileSystem(use_listings_cache=False, **s3.options).put(f"{tokens}/", "loader/tars/", recursive=True)
    there = TarStream(s3.url("loader/tars"), batch_size=20, storage_options=s3.options)
    for one, other in zip(there, TarStream(str(tokens), batch_size=20), strict=True):
        assert_equal(one, other)


def test_batches_hold_what_a_token_stream_s_hold(tokens):
    dataset = TokenDataset(str(tokens))
    batch = next(iter(TarStream(str(tokens), batch_size=20)))
    assert_equal(batch, dataset.batch([dataset.find(*name) for name in ids([batch])]))


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
    with pytest.raises(StreamStateError, match="found that of a TokenStream"):
        other.load_state_dict(TokenStream(TokenDataset(str(tokens)), 8).state_dict())
    with pytest.raises(ConfigError, match="batch_size must be 1 or more, found 0"):
        TarStream(str(tokens), batch_size=0)


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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_grouped_tars_are_streamed_window_by_window(grouped_tokens, all_ids, num_workers):
    stream = TarStream(str(grouped_tokens), batch_size=20)
    batches = list(DataLoader(stream, batch_size=None, num_workers=num_workers))
    assert sorted(ids(batches)) == all_ids
    dataset = TokenDataset(str(grouped_tokens))
    for batch in batches[:3]:
        assert_equal(batch, dataset.batch([dataset.find(*name) for name in ids([batch])]))
    neighbours = list(itertools.pairwise(ids(list(stream))))
    assert sum(one[0] == other[0] for one, other in neighbours) < len(neighbours) / 4  # windows are mixed, not groups


def test_grouped_tars_are_streamed_sample_by_sample(grouped_tokens, all_ids):
    stream = TarSampleStream(str(grouped_tokens), batch_size=8)
    seen = []
    for batch in stream:
        assert batch["this_bits"].shape[1:] == (4, 8, 1)
        assert batch["num_frames"].shape == batch["start_frame"].shape[:1]
        samples = list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))
        seen += [(clip_id, start) for clip_id, starts in samples for start in starts]
    assert len(seen) == len(set(seen))
    assert set(seen) < set(all_ids)
    assert len(seen) > 0.8 * len(all_ids)


def test_samples_of_grouped_tars_are_those_of_a_token_dataset(grouped_tokens):
    dataset = TokenDataset(str(grouped_tokens), windows_per_sample=4)
    by_name = {(clip, starts[0]): n for n, (clip, starts) in enumerate(starts_of(dataset))}
    batch = next(iter(TarSampleStream(str(grouped_tokens), batch_size=200)))
    names = list(zip(batch["clip_id"], batch["start_frame"][:, 0].tolist(), strict=True))
    shared = [n for n, name in enumerate(names) if name in by_name]
    assert len(shared) > 0.5 * len(names)  # behind a shard's end within a clip, samples of tars begin elsewhere
    wanted = dataset.batch([by_name[names[n]] for n in shared])
    taken = {
        name: value[shared] if isinstance(value, torch.Tensor) else [value[n] for n in shared]
        for name, value in batch.items()
    }
    assert_equal(taken, wanted)


def starts_of(dataset: TokenDataset) -> list[tuple[str, list[int]]]:
    batch = dataset.batch(range(len(dataset)))
    return list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))


def test_a_sample_stream_of_plain_tars_gives_windows(tokens):
    ours, theirs = TarSampleStream(str(tokens), seed=3), TarStream(str(tokens), seed=3)
    assert ours.windows_per_sample == 1
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)
