"""Streams: every sample exactly once through kills and other numbers of ranks and workers, mixing, states, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError, ContractMismatchError, StreamStateError
from pipeline.loader import Ranks, Reading, Shuffle, TokenDataset, TokenStream, stream_state

ORDER = Shuffle(seed=3, groups=4)


@pytest.fixture(scope="module")
def dataset(tokens: Path) -> TokenDataset:
    """The train split, opened once."""
    return TokenDataset(str(tokens), columns=["clip_id", "start_frame", "this_bits"])


@pytest.fixture(scope="module")
def all_ids(tokens: Path, loader_tools: SimpleNamespace) -> list[tuple[str, int]]:
    """Every window of the train split, sorted."""
    rows = loader_tools.rows_of(tokens)
    return sorted(zip(rows["clip_id"].to_pylist(), rows["start_frame"].to_pylist(), strict=True))


def ids(batch: dict[str, Any]) -> list[tuple[str, int]]:
    return list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))


def rank_streams(dataset: TokenDataset, num_ranks: int, batch_size: int, state: Any = None) -> list[TokenStream]:
    streams = [
        TokenStream(dataset, batch_size, shuffle=ORDER, ranks=Ranks(rank, num_ranks, "exact"))
        for rank in range(num_ranks)
    ]
    for stream in streams:
        if state is not None:
            stream.load_state_dict(state)
    return streams


def run(loaders: list[Any], num_steps: int | None) -> tuple[list[tuple[str, int]], Any]:
    """Take so many steps on all ranks in turn, or all there are; return what was trained on, and rank 0's state."""
    iterators = [iter(loader) for loader in loaders]
    seen, state = [], None
    for _ in range(num_steps) if num_steps is not None else itertools.count():
        batches = [next(iterator, None) for iterator in iterators]
        if batches[0] is None:
            break
        state = batches[0]["state"]
        seen += [name for batch in batches if batch is not None for name in ids(batch)]
    return seen, state


def loaders_of(streams: list[TokenStream], num_workers: int) -> list[DataLoader[Any]]:
    return [DataLoader(stream, batch_size=None, num_workers=num_workers, prefetch_factor=2) for stream in streams]


@pytest.mark.parametrize("kill_after", [0, 1, 5, 11])
def test_epoch_over_4_ranks_x_2_workers_goes_on_over_2_ranks_x_3_workers(dataset, all_ids, kill_after):
    """Real worker processes on both sides; batches that they had prefetched are not counted as seen."""
    before, state = run(loaders_of(rank_streams(dataset, 4, 16), 2), kill_after)
    assert len(before) == kill_after * 4 * 16
    after, state = run(loaders_of(rank_streams(dataset, 2, 24, state), 3), None)
    assert sorted(before + after) == all_ids
    assert (state["epoch"], state["position"]) == (1, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_epoch_killed_again_and_again_gives_every_sample_once(dataset, all_ids, data):
    """Simulated ranks, killed at random points, each time with another number of ranks and batch size."""
    seen, state = [], None
    for _ in range(data.draw(st.integers(0, 4))):
        streams = rank_streams(dataset, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40)), state)
        if state is not None and state["epoch"] == 1:
            break
        part, reached = run(streams, data.draw(st.integers(0, 8)))
        seen, state = seen + part, reached or state
    if state is None or state["epoch"] == 0:
        part, state = run(rank_streams(dataset, data.draw(st.integers(1, 6)), 17, state), None)
        seen += part
    assert sorted(seen) == all_ids
    assert (state["epoch"], state["position"]) == (1, 0)


def test_workers_change_neither_batches_nor_order(dataset):
    stream = TokenStream(dataset, 32, shuffle=ORDER)
    alone = [(ids(batch), batch["state"]) for batch in stream]
    for num_workers, context in ((1, "fork"), (3, "fork"), (2, "spawn")):
        again = TokenStream(dataset, 32, shuffle=ORDER)
        loader = DataLoader(again, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
        assert [(ids(batch), batch["state"]) for batch in loader] == alone
    assert len(alone) == len(TokenStream(dataset, 32, shuffle=ORDER))


def test_order_depends_on_seed_and_epoch_alone(dataset, tokens):
    def first(seed: int, epoch: int) -> list[tuple[str, int]]:
        stream = TokenStream(TokenDataset(str(tokens)), 64, shuffle=Shuffle(seed=seed, groups=4))
        stream.set_epoch(epoch)
        return ids(next(iter(stream)))

    assert first(3, 0) == ids(next(iter(TokenStream(dataset, 64, shuffle=ORDER))))
    assert len({tuple(first(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_stored_order_without_shuffling(tokens, loader_tools):
    rows = loader_tools.rows_of(tokens, "val")
    stream = TokenStream(TokenDataset(str(tokens), "val"), 10, shuffle=Shuffle(groups=0), ranks=Ranks(even="exact"))
    found = [name for batch in stream for name in ids(batch)]
    assert found == list(zip(rows["clip_id"].to_pylist(), rows["start_frame"].to_pylist(), strict=True))


@pytest.mark.parametrize("even", ["pad", "drop"])
def test_pad_and_drop_give_all_ranks_equally_many_whole_batches(dataset, all_ids, even):
    streams = [TokenStream(dataset, 25, shuffle=ORDER, ranks=Ranks(rank, 3, even)) for rank in range(3)]
    batches = [list(stream) for stream in streams]
    assert len({len(of_rank) for of_rank in batches}) == 1
    assert {len(batch["clip_id"]) for of_rank in batches for batch in of_rank} == {25}
    seen = [name for of_rank in batches for batch in of_rank for name in ids(batch)]
    assert len(set(seen)) == (len(all_ids) if even == "pad" else len(all_ids) // 75 * 75)
    assert len(seen) == -(-len(all_ids) // 75) * 75 if even == "pad" else len(set(seen))
    assert [of_rank[-1]["state"]["epoch"] for of_rank in batches] == [1, 1, 1]


def test_pad_repeats_the_beginning_of_the_epoch_more_than_once_if_need_be(dataset, all_ids):
    stream = TokenStream(dataset, 2 * len(all_ids) + 5, shuffle=ORDER, ranks=Ranks(even="pad"))
    (batch,) = list(stream)
    order = ids(batch)
    assert sorted(order[: len(all_ids)]) == all_ids
    assert order[len(all_ids) : 2 * len(all_ids)] == order[: len(all_ids)]
    assert order[2 * len(all_ids) :] == order[:5]


def test_passes_in_this_process_go_from_epoch_to_epoch(dataset, all_ids):
    stream = TokenStream(dataset, 50, shuffle=ORDER, ranks=Ranks(even="exact"))
    first, second = ([name for batch in stream for name in ids(batch)] for _ in range(2))
    assert sorted(first) == sorted(second) == all_ids
    assert first != second
    assert stream.state_dict()["epoch"] == stream.epoch == 2


@pytest.mark.parametrize("is_persistent", [False, True])
def test_set_epoch_reaches_workers(dataset, is_persistent):
    stream = TokenStream(dataset, 64, shuffle=ORDER)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=is_persistent)
    passes = []
    for epoch in (0, 1, 5):
        stream.set_epoch(epoch)
        passes.append([ids(batch) for batch in loader])
    alone = TokenStream(dataset, 64, shuffle=ORDER)
    for epoch, found in zip((0, 1, 5), passes, strict=True):
        alone.set_epoch(epoch)
        assert [ids(batch) for batch in alone] == found


def test_loaded_state_counts_for_its_own_epoch_only(dataset):
    stream = TokenStream(dataset, 64, shuffle=ORDER)
    stream.set_epoch(2)
    batches = list(stream)
    resumed = TokenStream(dataset, 64, shuffle=ORDER)
    resumed.load_state_dict(batches[3]["state"])
    resumed.set_epoch(2)
    assert len(resumed) == len(batches) - 4
    assert [ids(batch) for batch in DataLoader(resumed, batch_size=None, num_workers=2)] == [
        ids(batch) for batch in batches[4:]
    ]
    resumed.set_epoch(3)
    assert len(resumed) == len(batches)


def test_state_dict_in_this_process_is_that_of_the_last_batch(dataset):
    stream = TokenStream(dataset, 64, shuffle=ORDER)
    assert stream.state_dict()["position"] == 0
    for batch in itertools.islice(stream, 4):
        assert stream.state_dict() == batch["state"]
    assert batch["state"]["position"] == 4 * 64


def test_state_dict_refuses_to_guess_what_workers_did(dataset):
    stream = TokenStream(dataset, 64, shuffle=ORDER)
    batches = iter(DataLoader(stream, batch_size=None, num_workers=2))
    state = next(batches)["state"]
    with pytest.raises(StreamStateError, match=r"batch\[.state.\]"):
        stream.state_dict()
    stream.load_state_dict(state)
    assert stream.state_dict() == state


def test_mixture_holds_weights_and_every_sample_once_a_pass(tokens, shuffled_tokens):
    one, two = TokenDataset(str(tokens), None), TokenDataset(str(shuffled_tokens), "val")
    stream = TokenStream(
        [one, two],
        40,
        weights=[3, 1],
        shuffle=Shuffle(seed=1, groups=2, samples_per_epoch=4 * len(two)),
        ranks=Ranks(even="exact"),
    )
    seen: dict[int, list[tuple[str, int]]] = {0: [], 1: []}
    for _ in range(3):
        for batch in stream:
            for number, name in zip(batch["dataset"].tolist(), ids(batch), strict=True):
                seen[number].append(name)
    total = 12 * len(two)
    assert abs(len(seen[1]) - total / 4) <= 4
    own = seen[1][: len(two)]
    assert len(set(own)) == len(two), "a pass holds each sample once, though it crosses epochs"
    again = seen[1][len(two) : 2 * len(two)]
    assert sorted(again) == sorted(own)
    assert again != own


def test_mixture_resumes_on_other_ranks_and_workers(tokens, shuffled_tokens):
    datasets = [TokenDataset(str(tokens)), TokenDataset(str(shuffled_tokens), "val")]

    def streams(num_ranks: int, batch_size: int) -> list[TokenStream]:
        return [
            TokenStream(datasets, batch_size, weights=[1, 2], shuffle=ORDER, ranks=Ranks(rank, num_ranks, "exact"))
            for rank in range(num_ranks)
        ]

    whole, _ = run(streams(1, 60), None)
    before, state = run(loaders_of(streams(3, 10), 2), 4)
    resumed = streams(2, 20)
    for stream in resumed:
        stream.load_state_dict(state)
    after, _ = run(loaders_of(resumed, 1), None)
    assert sorted(before + after) == sorted(whole)
    assert sorted(before) == sorted(whole[:120])


def test_style_is_a_whole_window_of_the_same_clip_and_the_same_on_every_rank(tokens, loader_tools):
    rows = loader_tools.rows_of(tokens).to_pylist()
    by_clip: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_clip.setdefault(row["clip_id"], {})[row["start_frame"]] = row
    dataset = TokenDataset(str(tokens))
    found: dict[tuple[str, int], int] = {}
    for batch in TokenStream(dataset, 30, shuffle=ORDER, has_style=True, ranks=Ranks(even="exact")):
        for number, (clip_id, start) in enumerate(ids(batch)):
            style_start, valid = int(batch["style_start_frame"][number]), int(batch["style_valid_frames"][number])
            row = by_clip[clip_id][style_start + valid]
            assert bytes(batch["style_bits"][number].flatten().tolist()) == row["prev_bits"]
            assert valid == 5 or max(by_clip[clip_id]) < 5
            found[clip_id, start] = style_start
    assert len(set(found.values())) > 20
    for rank in range(2):
        stream = TokenStream(dataset, 15, shuffle=ORDER, has_style=True, ranks=Ranks(rank, 2, "exact"))
        for batch in stream:
            styles = batch["style_start_frame"].tolist()
            assert [found[name] for name in ids(batch)] == styles


def test_load_state_dict_refuses_states_of_other_streams(dataset, tokens):
    state = next(iter(TokenStream(dataset, 64, shuffle=ORDER)))["state"]
    others = [
        TokenStream(dataset, 64, shuffle=Shuffle(seed=4, groups=4)),
        TokenStream(dataset, 64, shuffle=Shuffle(seed=3, groups=5)),
        TokenStream(TokenDataset(str(tokens), None), 64, shuffle=ORDER),
        TokenStream(TokenDataset(str(tokens), windows_per_sample=2), 64, shuffle=ORDER),
    ]
    for stream in others:
        with pytest.raises(StreamStateError, match="another order"):
            stream.load_state_dict(state)
    with pytest.raises(StreamStateError, match="without position, order"):
        others[0].load_state_dict({"epoch": 3})
    with pytest.raises(StreamStateError, match="none of a stream"):
        stream_state({"_snapshot": {"x": 1}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5000}, "does not fill one step"),
        ({"weights": [0.0]}, "sum to zero"),
        ({"weights": [1.0, 1.0]}, "wanted 1 weights"),
        ({"shuffle": Shuffle(groups=-1)}, "shuffle.groups"),
    ],
)
def test_token_stream_refuses_what_it_cannot_do(dataset, changes, words):
    with pytest.raises(ConfigError, match=words):
        TokenStream(dataset, **{"batch_size": 8, **changes})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((2, 2), "rank must be 0 to num_ranks - 1, found 2 of 2"),
        ((0, 0), "found 0 of 0"),
        ((0, 1, "exakt"), "even must be one of pad, drop, exact, found 'exakt'"),
    ],
)
def test_ranks_refuse_what_there_is_not(fields, words):
    with pytest.raises(ConfigError, match=words):
        Ranks(*fields)


def test_weights_are_the_same_as_whole_or_floating_numbers(dataset, shuffled_tokens):
    other = TokenDataset(str(shuffled_tokens), columns=dataset.columns)
    streams = [
        TokenStream([dataset, other], 20, weights=weights, shuffle=ORDER)
        for weights in ([3, 1], [3.0, 1.0], np.array([3, 1], np.float32))
    ]
    batches = [next(iter(stream)) for stream in streams]
    assert ids(batches[0]) == ids(batches[1]) == ids(batches[2])
    for stream in streams:
        stream.load_state_dict(batches[0]["state"])


def test_load_state_dict_says_what_a_batched_state_is(dataset):
    """What DataLoader makes of the stream's batches where its own batch_size is left at 1."""
    state = next(iter(DataLoader(TokenStream(dataset, 8, shuffle=ORDER))))["state"]
    with pytest.raises(StreamStateError, match="give the DataLoader batch_size=None"):
        TokenStream(dataset, 8, shuffle=ORDER).load_state_dict(state)


def test_token_stream_refuses_a_cache_that_would_read_everything_again_and_again(tokens):
    small = TokenDataset(str(tokens), reading=Reading(cache_bytes=3000))
    with pytest.raises(ConfigError, match=r"raise reading.cache_bytes"):
        TokenStream(small, 8, shuffle=Shuffle(groups=16))
    assert len(TokenStream(small, 8, shuffle=Shuffle(groups=1))) > 0


def test_token_stream_refuses_datasets_that_do_not_go_together(dataset, tokens, motion, tmp_path, loader_tools):
    with pytest.raises(ConfigError, match="equal columns"):
        TokenStream([dataset, TokenDataset(str(tokens))], 8)
    with pytest.raises(ConfigError, match="at least one"):
        TokenStream([], 8)
    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    config = BitwiseVAEConfig(
        motion_dim=4, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    write_checkpoint(random_checkpoint(config, np.zeros(4), np.ones(4), 1), tmp_path / "other.safetensors")
    other = loader_tools.tokenize(motion, tmp_path / "out", tmp_path / "other.safetensors")
    with pytest.raises(ContractMismatchError, match="weights: wanted"):
        TokenStream([dataset, TokenDataset(str(other), columns=dataset.columns)], 8)


def test_batches_are_tensors_that_pin_and_move(dataset):
    batch = next(iter(TokenStream(dataset, 8, shuffle=ORDER)))
    assert batch["this_bits"].dtype == torch.uint8
    assert batch["this_bits"].shape == (8, 8, 1)
    assert batch["start_frame"].dtype == torch.int64
    assert set(batch) == {"clip_id", "start_frame", "this_bits", "state"}
