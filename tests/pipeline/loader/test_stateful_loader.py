"""Streams under torchdata's StatefulDataLoader: its states resume exactly, and say where any other loader goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.loader import Ranks, Shuffle, TokenDataset, TokenStream, stream_state

ORDER = Shuffle(seed=3, groups=4)


@pytest.fixture(scope="module")
def dataset(tokens: Path) -> TokenDataset:
    """The train split, opened once."""
    return TokenDataset(str(tokens), columns=["clip_id", "start_frame", "this_bits"])


def ids(batch: dict[str, Any]) -> list[tuple[str, int]]:
    return list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("taken", [1, 4, 5])
def test_stateful_data_loader_resumes_behind_the_last_batch(dataset, num_workers, taken):
    def make() -> Any:
        return StatefulDataLoader(
            TokenStream(dataset, 48, shuffle=ORDER, ranks=Ranks(even="exact")), batch_size=None, num_workers=num_workers
        )

    whole = [ids(batch) for batch in make()]
    loader = make()
    begun = iter(loader)
    for _ in range(taken):
        last = next(begun)
    state = loader.state_dict()
    assert stream_state(state) == last["state"]
    resumed = make()
    resumed.load_state_dict(state)
    rest = iter(resumed)
    assert ids(next(rest)) == whole[taken]
    assert stream_state(resumed.state_dict())["position"] == (taken + 1) * 48  # a state taken after a resumption
    assert [ids(batch) for batch in rest] == whole[taken + 1 :]
    elsewhere = TokenStream(dataset, 48, shuffle=ORDER, ranks=Ranks(even="exact"))
    elsewhere.load_state_dict(stream_state(state))
    loader = DataLoader(elsewhere, batch_size=None, num_workers=4)
    assert [ids(batch) for batch in loader] == whole[taken:]


def test_stateful_data_loader_states_are_right_to_the_end_of_the_epoch(dataset):
    """Where some workers have run out and others have not."""
    loader = StatefulDataLoader(
        TokenStream(dataset, 64, shuffle=ORDER, ranks=Ranks(even="exact")), batch_size=None, num_workers=3
    )
    for batch in loader:
        assert stream_state(loader.state_dict()) == batch["state"]
    assert batch["state"]["epoch"] == 1


@pytest.mark.parametrize("even", ["exact", "drop", "pad"])
def test_stream_state_counts_batches_behind_the_last_snapshot(dataset, even):
    """With snapshot_every_n_steps above 1 the workers' own states lie behind."""
    stream = TokenStream(dataset, 48, shuffle=ORDER, ranks=Ranks(even=even))
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=2, snapshot_every_n_steps=5)
    for epoch in range(2):
        stream.set_epoch(epoch)
        for batch in loader:
            assert stream_state(loader.state_dict()) == batch["state"]
        assert batch["state"]["epoch"] == epoch + 1
