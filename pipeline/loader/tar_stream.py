"""TarStream: batches of WebDataset shards, read by the webdataset library; resumed at the beginning of an epoch.

Knows no Ray, and no row groups: a tar is read from its beginning to its end.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.contract.columns import array_columns
from pipeline.contract.schema import AUDIO_ARRAYS, WINDOW_NUMBERS
from pipeline.contract.specs import CodecSpec
from pipeline.dataset.manifest import ShardFile
from pipeline.errors import ConfigError, StreamStateError, VerifyError
from pipeline.export.layout import shuffled_order
from pipeline.hashing import hash64
from pipeline.loader.batches import Batch, collate, is_per_window, sound_of_bytes
from pipeline.loader.opening import open_published, require_codec, shards_of_split
from pipeline.loader.stream import Ranks, shared_numbers

BUFFER_SAMPLES = 4096
"""Samples among which the next one is drawn, in each process."""

_Windows = Sequence[Batch]
"""The windows of a sample, each by itself."""


class TarStream(IterableDataset[Batch]):
    """Batches of the WebDataset shards of a token dataset, with the names of a `TokenStream`'s.

    A trainer builds one a rank. Seed and epoch give the order of shards; ranks and workers take strides of it, and draw
    samples from a buffer. So ranks have as many batches as their shards fill, a worker for which no shard is left has
    none, and the state is the epoch alone.

    Args:
        url: folder of the dataset, or ``DATASET/versions/VERSION.json``.
        split: name of a split; None: all of them.
        batch_size: samples of a batch; the last one of each process may hold fewer.
        seed: of the order.
        ranks: this rank of how many; `even` does not count here.
        codec: what the tokens have to mean; None: not compared.
        storage_options: passed to fsspec.

    Raises:
        InputNotFoundError: there is no dataset, or no such split.
        OutputMismatchError: it is staged, without WebDataset shards, or dataset.json is not one of ours.
        ContractMismatchError: it is of another codec.
        ConfigError: there are fewer shards than ranks, or batch_size is below 1.
    """

    def __init__(  # noqa: PLR0913 - those of a TokenDataset and a TokenStream, which this is in one
        self,
        url: str,
        split: str | None = "train",
        batch_size: int = 32,
        *,
        seed: int = 0,
        ranks: Ranks | None = None,
        codec: CodecSpec | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, found {batch_size}")
        self.folder, self.manifest = open_published(url, storage_options)
        if codec is not None:
            require_codec(self.folder, self.manifest.contract, codec)
        shards = self.manifest.shards
        self._shards = [
            shards["webdataset"][at] for at in shards_of_split(self.folder, self.manifest, "webdataset", split)
        ]
        self._batch_size, self._seed, self._ranks = batch_size, seed, ranks or Ranks()
        if len(self._shards) < self._ranks.num_ranks:
            raise ConfigError(
                f"{self.folder}: {len(self._shards)} shards of split {split!r} for {self._ranks.num_ranks} ranks: some"
                " would read nothing; export with a smaller export.windows_per_shard, or read Parquet with TokenStream"
            )
        self._epoch = shared_numbers(1)  # shared with worker processes
        contract = self.manifest.contract
        self._names = {array.member: array.name for array in array_columns(contract.codec, contract.corpus)}

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch's."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch of the next pass."""
        return {"epoch": int(self._epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin with a state's epoch.

        Raises:
            StreamStateError: it is no such state.
        """
        if "order" in state:
            raise StreamStateError(
                "wanted the state of a TarStream, found that of a TokenStream, which stands inside an epoch: give it to"
                " a TokenStream over the same datasets, or call set_epoch"
            )
        if "epoch" not in state:
            raise StreamStateError("wanted the state of a TarStream, found one without epoch")
        self.set_epoch(int(state["epoch"]))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch that fall to this process."""
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        reader = self._ranks.rank + number * self._ranks.num_ranks
        key = f"{int(self._epoch)}\0{self._seed}"
        order = shuffled_order(f"tars\0{key}", len(self._shards))[reader :: count * self._ranks.num_ranks]
        samples = webdataset.DataPipeline(
            lambda: self._opened(order),
            tar_file_expander,
            group_by_keys,
            webdataset.decode(),
            self._samples,
            webdataset.shuffle(BUFFER_SAMPLES, rng=random.Random(hash64(f"buffer\0{reader}\0{key}"))),
            webdataset.batched(self._batch_size, collation_fn=self._batch),
        )
        yield from samples

    def _opened(self, order: Iterable[int]) -> Iterator[dict[str, Any]]:
        for shard in (self._shards[number] for number in order):
            yield {"url": shard.path, "stream": io.BytesIO(self._read(shard))}

    def _read(self, shard: ShardFile) -> bytes:
        place, step = f"{self.folder}/{shard.path}", "restore it, or run motion-tokens verify"
        try:
            data = self.folder.read(shard.path)
        except FileNotFoundError as error:
            raise VerifyError(f"{place} is missing, dataset.json names it: {step}") from error
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise VerifyError(f"{place} is not what dataset.json names, its SHA-256 is another: {step}")
        return data

    def _samples(self, stored: Iterable[Mapping[str, Any]]) -> Iterator[_Windows]:
        """Yield the windows of the samples that tars hold, one by one."""
        for members in stored:
            yield from ([window] for window in self._windows(members))

    def _windows(self, members: Mapping[str, Any]) -> list[Batch]:
        fields = members["json"]
        is_grouped = isinstance(fields["start_frame"], list)
        windows: list[Batch] = [{} for _ in range(len(fields["start_frame"]) if is_grouped else 1)]
        for member, value in members.items():
            name, _, number = member.removesuffix(".npy").removesuffix(".flac").partition(".")
            if member in self._names:
                for window, array in zip(windows, value if is_grouped else [value], strict=True):
                    window[self._names[member]] = torch.from_numpy(np.ascontiguousarray(array))
            elif name in AUDIO_ARRAYS:
                sound = sound_of_bytes(value, True) if member.endswith(".flac") else torch.from_numpy(value)
                windows[int(number or 0)][name] = sound
        for place, window in enumerate(windows):
            for name, value in fields.items():
                window[name] = value[place] if is_grouped and name in WINDOW_NUMBERS else value
        return windows

    def _batch(self, samples: Sequence[_Windows]) -> Batch:
        return collate([window for windows in samples for window in windows])


class TarSampleStream(TarStream):
    """Batches of samples as the tars of a dataset hold them: `export.windows_per_sample` windows each.

    Built as a `TarStream` is, with which it shares all else. Batches have the shapes of those of a `TokenDataset` with
    as many windows a sample. Samples with fewer windows, at the end of a clip or shard, are left out.
    """

    @property
    def windows_per_sample(self) -> int:
        """Windows of a clip that make a sample."""
        return int(self.manifest.export.get("windows_per_sample", 1))

    def _samples(self, stored: Iterable[Mapping[str, Any]]) -> Iterator[_Windows]:
        for members in stored:
            windows = self._windows(members)
            if len(windows) == self.windows_per_sample:
                yield windows

    def _batch(self, samples: Sequence[_Windows]) -> Batch:
        batch, size = super()._batch(samples), self.windows_per_sample
        if size == 1:
            return batch
        return {
            name: value.reshape(-1, size, *value.shape[1:]) if is_per_window(name, value) else value[::size]
            for name, value in batch.items()
        }
