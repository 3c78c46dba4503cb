"""TokenStream: batches of one or several token datasets in a seeded order, resumed at any batch on any number of ranks.

Knows no Ray, and of order only how to ask order.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.contract.schema import AUDIO_ARRAYS
from pipeline.errors import ConfigError, StreamStateError
from pipeline.export.layout import mixed_hash
from pipeline.hashing import digest_of, hash64
from pipeline.loader.batches import Batch, merged
from pipeline.loader.dataset import TokenDataset
from pipeline.loader.opening import require_codec
from pipeline.loader.order import DatasetOrder, Even, Mixture, Steps

IntArray = NDArray[np.int64]
State = dict[str, Any]
"""What `load_state_dict` takes: plain values, fit for JSON."""


@dataclass(frozen=True)
class Shuffle:
    """The order of a stream; equal fields, equal order on every machine.

    Args:
        seed: other seeds give other orders.
        groups: row groups whose rows are shuffled together, 0 for the stored order. More mix better and stay in memory.
        samples_per_epoch: None: as many as the datasets that have a weight hold together.
    """

    seed: int = 0
    groups: int = 16
    samples_per_epoch: int | None = None


@dataclass(frozen=True)
class Ranks:
    """Who reads: this rank of so many, and what becomes of samples that do not fill a step of all of them.

    Args:
        rank: from 0.
        num_ranks: of the trainer.
        even: `drop` leaves them out, `pad` fills the step from the epoch's beginning, `exact` gives each of them once:
            then the last batches are smaller, and some ranks may have one batch fewer.

    Raises:
        ConfigError: there is no such rank or choice.
    """

    rank: int = 0
    num_ranks: int = 1
    even: Even = "drop"

    def __post_init__(self) -> None:
        if self.even not in get_args(Even):
            raise ConfigError(f"even must be one of {', '.join(get_args(Even))}, found {self.even!r}")
        if not 0 <= self.rank < self.num_ranks:
            raise ConfigError(f"rank must be 0 to num_ranks - 1, found {self.rank} of {self.num_ranks}")


class TokenStream(IterableDataset[Batch]):
    """Batches in an order that is a function of seed and epoch, from a position that is one number.

    A trainer builds one a rank and gives it to ``DataLoader(stream, batch_size=None, num_workers=..)``, or iterates it.
    A pass is the rest of an epoch. Call `set_epoch` before each pass, as with torch's DistributedSampler.

    Every batch carries the state behind it: ``batch["state"]`` of the last batch that was trained on is what
    `load_state_dict` takes, in a stream of any number of ranks and workers and any batch size. Batches that were
    prefetched and not trained on do not count.

    Args:
        datasets: one, or several to mix; of one codec, with equal columns, windows a sample and, where columns hold
            audio, its rate.
        batch_size: samples of a rank at a step.
        weights: shares of several datasets; None: by their sizes.
        shuffle: the order.
        ranks: this rank of how many.
        has_style: whether samples get `style_bits`, `style_start_frame` and `style_valid_frames` of a seeded
            window of their clip.

    Raises:
        ConfigError: a number is out of range, weights do not fit, datasets have other columns or audio of another rate,
            or the row groups that are shuffled together do not fit the cache.
        ContractMismatchError: the datasets are of different codecs.
    """

    def __init__(
        self,
        datasets: TokenDataset | Sequence[TokenDataset],
        batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        shuffle: Shuffle | None = None,
        ranks: Ranks | None = None,
        has_style: bool = False,
    ) -> None:
        self.datasets = [datasets] if isinstance(datasets, TokenDataset) else list(datasets)
        self.batch_size, self.has_style = batch_size, has_style
        self.shuffle, self.ranks = shuffle or Shuffle(), ranks or Ranks()
        _require_equal(self.datasets)
        self.weights = [float(weight) for weight in (map(len, self.datasets) if weights is None else weights)]
        if len(self.weights) != len(self.datasets):
            raise ConfigError(f"wanted {len(self.datasets)} weights, one a dataset, found {len(self.weights)}")
        seed = self.shuffle.seed
        self._mixture = Mixture(self.weights, str(seed))
        sizes = [len(dataset) for dataset, weight in zip(self.datasets, self.weights, strict=True) if weight]
        self.num_samples = sum(sizes) if self.shuffle.samples_per_epoch is None else self.shuffle.samples_per_epoch
        """Samples of an epoch, of all ranks together."""
        self._require_sound()
        self._orders = [
            DatasetOrder(dataset.group_sizes, self.shuffle.groups, f"{number}\0{seed}")
            for number, dataset in enumerate(self.datasets)
        ]
        self._order_id = self._digest()
        # Shared with worker processes: epoch and position where the next pass begins, and whether a worker began one.
        self._shared = shared_numbers(3)
        self._reached: tuple[int, int] | None = None
        self._pass: State | None = None
        self._loaded: State | None = None

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch's: its beginning, or where a loaded state of this epoch goes on."""
        if epoch < 0:
            raise ConfigError(f"epochs count from 0, found {epoch}")
        if epoch != int(self._shared[0]):
            self._begin_at(epoch, 0)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return int(self._shared[0])

    def __len__(self) -> int:
        """Return the number of batches of this rank in the next pass."""
        return self._steps(int(self._shared[1])).num_batches(self.ranks.rank)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of a pass; in a worker of a DataLoader, those that fall to it in turn."""
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, start, step = int(self._shared[0]), int(self._shared[1]), number
        if worker is not None:
            self._shared[2] = 1
        if self._loaded is not None:
            epoch, start, step = (self._loaded[name] for name in ("epoch", "start", "step"))
            self._loaded = None
        steps = self._steps(start)
        self._reach(epoch, steps, step - num_workers, num_workers)
        return self._batches(epoch, steps, step, num_workers)

    def _reach(self, epoch: int, steps: Steps, step: int, stride: int) -> None:
        """Note that this process has made the batch of a step, and which one it makes next."""
        self._reached = self._after(epoch, steps, step)
        self._pass = {
            "epoch": epoch,
            "start": steps.start,
            "step": step + stride,
            "workers": stride,
            "step_samples": steps.step_samples,
            "num_steps": steps.num_steps,
        }

    def _batches(self, epoch: int, steps: Steps, first: int, stride: int) -> Iterator[Batch]:
        for step in range(first, steps.num_batches(self.ranks.rank), stride):
            batch = self._batch(epoch, steps.first_of(step), steps.offsets(step, self.ranks.rank))
            self._reach(epoch, steps, step, stride)
            batch["state"] = self._state(*self._after(epoch, steps, step))
            yield batch
        if get_worker_info() is None:
            self._begin_at(epoch + 1, 0)

    def state_dict(self) -> State:
        """Return the state behind the last batch that this process made.

        With workers of a plain DataLoader that is another process: there ``batch["state"]`` says it. torchdata's
        StatefulDataLoader asks its workers by itself.

        Raises:
            StreamStateError: workers make the batches, so that this process does not know.
        """
        state = self._state(*(self._reached or (int(self._shared[0]), int(self._shared[1]))))
        if get_worker_info() is not None:
            return {**state, "pass": self._pass}
        if int(self._shared[2]):
            raise StreamStateError(
                'workers of a DataLoader read this stream: take batch["state"] of the last batch that you trained on'
            )
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch that a state is of, in the next pass.

        Raises:
            StreamStateError: it is no state of a stream, or of one with other datasets, seed or order.
        """
        missing = [name for name in ("epoch", "position", "order") if name not in state]
        if missing:
            raise StreamStateError(f"wanted the state of a TokenStream, found one without {', '.join(missing)}")
        if not isinstance(state["order"], str):
            raise StreamStateError(
                "the state is a batch of states: give the DataLoader batch_size=None, since the stream makes batches"
            )
        if state["order"] != self._order_id:
            raise StreamStateError(
                f"the state is of another order ({state['order']}, here {self._order_id}): datasets, split, weights,"
                " windows_per_sample and shuffle have to be those of the stream that it was taken from"
            )
        worker = get_worker_info()
        if worker is None:
            self._begin_at(int(state["epoch"]), int(state["position"]))
            return
        own = state.get("pass")
        if own is None or own["workers"] != worker.num_workers:
            raise StreamStateError(
                f"the loader's state was taken with {own['workers'] if own else 'no'} workers, here are"
                f" {worker.num_workers}: give the stream's load_state_dict what stream_state says of that state"
            )
        self._loaded = dict(own)

    def _begin_at(self, epoch: int, position: int) -> None:
        self._shared[:] = torch.tensor([epoch, position, 0])
        self._reached, self._pass = None, None

    def _steps(self, start: int) -> Steps:
        return Steps(self.num_samples, start, self.batch_size, self.ranks.num_ranks, self.ranks.even)

    def _after(self, epoch: int, steps: Steps, step: int) -> tuple[int, int]:
        """Return epoch and position behind a step; behind the last one the next epoch begins."""
        position = steps.position_after(step) if step >= 0 else steps.start
        return (epoch, position) if position < self.num_samples else (epoch + 1, 0)

    def _state(self, epoch: int, position: int) -> State:
        return {"epoch": epoch, "position": position, "order": self._order_id}

    def _batch(self, epoch: int, first: int, offsets: IntArray) -> Batch:
        """Return the samples at positions of an epoch, in that order; positions beyond its end are its first again."""
        positions = (first + offsets) % self.num_samples
        which, draws = self._choose(epoch, positions)
        parts, places = [], []
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            dataset = self.datasets[number]
            samples = self._orders[number].samples(draws[mine])
            part = dataset.batch(samples)
            if self.has_style:
                key = hash64(f"style\0{epoch}\0{self.shuffle.seed}")
                chance = (mixed_hash(key, positions[mine]) >> np.uint64(1)).astype(np.int64)
                part.update(dataset.style_of(samples, chance))
            if len(self.datasets) > 1:
                part["dataset"] = torch.full((len(mine),), int(number))
            parts.append(part)
            places.append(mine)
        return merged(parts, places)

    def _choose(self, epoch: int, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Return the dataset of each position and how many samples it gave before, all epochs counted through."""
        which, draws = np.empty_like(positions), np.empty_like(positions)
        edges = np.flatnonzero(np.diff(positions) < 0) + 1  # where a padded step begins the epoch again
        for mine in np.split(np.arange(len(positions)), edges):
            low, high = int(positions[mine[0]]), int(positions[mine[-1]])
            found = self._mixture.choose(epoch * self.num_samples + low, high - low + 1)
            which[mine], draws[mine] = (values[positions[mine] - low] for values in found)
        return which, draws

    def _digest(self) -> str:
        return digest_of(
            [
                [[shard.sha256 for shard in dataset.shards] for dataset in self.datasets],
                [dataset.windows_per_sample for dataset in self.datasets],
                self.weights,
                [self.shuffle.seed, self.shuffle.groups, self.num_samples],
            ]
        )

    def _require_sound(self) -> None:
        ranks, shuffle = self.ranks, self.shuffle
        if self.batch_size < 1 or self.num_samples < 1 or shuffle.groups < 0:
            raise ConfigError(
                "batch_size and samples_per_epoch must be 1 or more, shuffle.groups 0 or more; found"
                f" {self.batch_size}, {self.num_samples} and {shuffle.groups}"
            )
        step = self.batch_size * ranks.num_ranks
        if ranks.even == "drop" and step > self.num_samples:
            raise ConfigError(
                f"an epoch of {self.num_samples} samples does not fill one step of {ranks.num_ranks} ranks of"
                f" {self.batch_size}: lower batch_size, or choose even='pad' or 'exact'"
            )
        for dataset in self.datasets:
            groups = dataset.row_groups
            wanted = min(max(1, shuffle.groups), len(groups.sizes)) * groups.largest_bytes
            if wanted > groups.cache_bytes:
                raise ConfigError(
                    f"{dataset.folder}: {shuffle.groups} row groups shuffled together take {wanted:,} bytes, the cache"
                    f" has {groups.cache_bytes:,}: lower shuffle.groups, raise reading.cache_bytes, or read fewer"
                    " columns"
                )


def shared_numbers(count: int) -> torch.Tensor:
    """Return zeros, (count,) int64, in memory that worker processes share, forked and spawned ones."""
    numbers = torch.zeros(count, dtype=torch.int64)
    numbers.share_memory_()  # type: ignore[no-untyped-call]
    return numbers


def stream_state(loader_state: Mapping[str, Any]) -> State:
    """Return the state of the stream inside the state of a StatefulDataLoader, for any number of ranks and workers.

    Raises:
        StreamStateError: there is none in it.
    """
    found = list(_states_in(loader_state))
    if not found:
        raise StreamStateError(
            "wanted the state of a StatefulDataLoader over a TokenStream, found none of a stream in it"
        )
    furthest = max(found, key=lambda state: (state["epoch"], state["position"]))
    reached = {name: furthest[name] for name in ("epoch", "position", "order")}
    num_later = loader_state.get("_steps_since_snapshot", 0)
    return reached if not num_later else {**reached, **_later([state["pass"] for state in found], num_later)}


def _later(passes: Sequence[State], num_steps: int) -> State:
    """Return epoch and position so many steps behind what workers had made when they were asked last.

    A StatefulDataLoader with `snapshot_every_n_steps` above 1 asks them now and then, and counts in between.
    """
    epoch = max(own["epoch"] for own in passes)
    last = max((own for own in passes if own["epoch"] == epoch), key=lambda own: int(own["step"]))
    step = last["step"] - last["workers"] + num_steps
    if step + 1 >= last["num_steps"]:
        return {"epoch": epoch + 1, "position": 0}
    return {"epoch": epoch, "position": last["start"] + (step + 1) * last["step_samples"]}


def _states_in(tree: object) -> Iterator[State]:
    if isinstance(tree, Mapping):
        if {"epoch", "position", "order"} <= set(tree):
            yield dict(tree)
        for value in tree.values():
            yield from _states_in(value)


def _require_equal(datasets: Sequence[TokenDataset]) -> None:
    """Make sure that datasets can stand in one batch."""
    if not datasets:
        raise ConfigError("wanted at least one dataset, found none")
    first = datasets[0]
    for other in datasets[1:]:
        require_codec(other.folder, other.contract, first.codec)
        if set(other.columns) != set(first.columns) or other.windows_per_sample != first.windows_per_sample:
            raise ConfigError(
                f"datasets in one stream need equal columns and windows_per_sample: {first.folder} has"
                f" {first.columns} and {first.windows_per_sample}, {other.folder} {other.columns} and"
                f" {other.windows_per_sample}; choose with columns=.."
            )
        rates = [_audio_rate(dataset) for dataset in (first, other)]
        if rates[0] != rates[1]:
            raise ConfigError(
                f"datasets in one stream need audio of one rate: {first.folder} has {rates[0]}, {other.folder}"
                f" {rates[1]} (input.audio.rate_hz). Choose columns without audio with columns=.., or tokenize one"
                " again with audio of the other's rate"
            )


def _audio_rate(dataset: TokenDataset) -> str:
    """Return the samples a second of the audio that a dataset gives, in words; "" where it gives none."""
    audio = dataset.contract.corpus.audio
    if audio is None or not any(name in dataset.columns for name in AUDIO_ARRAYS):
        return ""
    return f"{audio.rate_hz:,} Hz" if audio.rate_hz else "the files' own rates"
