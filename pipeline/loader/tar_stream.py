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

from pipeline.config import CodecSpec, hash64
from pipeline.errors import ConfigError, StreamStateError, VerifyError
from pipeline.export.layout import shuffled_order
from pipeline.loader.batches import Batch, collate, sound_of_bytes
from pipeline.loader.opening import open_published, require_codec, shards_of_split
from pipeline.loader.stream import Ranks, shared_numbers
from pipeline.manifest import ShardFile
from pipeline.schema import AUDIO_ARRAYS, array_columns

BUFFER_SAMPLES = 4096
"""Samples among which the next one is drawn, in each process."""


class TarStream(IterableDataset[Batch]):
    """Batches of the WebDataset shards of a token dataset, with the names of a `TokenStream`'s.

    A trainer builds one a rank. Seed and epoch give the order of shards; ranks and workers take strides of it, and draw
    samples from a buffer. So ranks have as many batches as their shards fill, and the state is the epoch alone.

    Args:
        url: folder of the dataset, or ``DATASET/versions/VERSION.json``.
        split: name of a split; None: all of them.
        batch_size: samples of a batch; the last one of each process may hold fewer.
        seed: of the order.
        ranks: this rank of how many; `even` does not count here.
        codec: what the tokens have to mean; None: not compared.

    Raises:
        InputNotFoundError: there is no dataset, or no such split.
        OutputMismatchError: it is staged, without WebDataset shards, or dataset.json is not one of ours.
        ContractMismatchError: it is of another codec.
        ConfigError: there are fewer shards than ranks.
    """

    def __init__(
        self,
        url: str,
        split: str | None = "train",
        batch_size: int = 32,
        *,
        seed: int = 0,
        ranks: Ranks | None = None,
        codec: CodecSpec | None = None,
    ) -> None:
        self.folder, self.manifest = open_published(url)
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
            webdataset.shuffle(BUFFER_SAMPLES, rng=random.Random(hash64(f"buffer\0{reader}\0{key}"))),
            webdataset.decode(),
            webdataset.map(self._sample),
            webdataset.batched(self._batch_size, collation_fn=_batch),
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

    def _sample(self, members: Mapping[str, Any]) -> Batch:
        sample: Batch = {}
        for member, value in members.items():
            if member in self._names:
                sample[self._names[member]] = torch.from_numpy(np.ascontiguousarray(value))
            elif member.partition(".")[0] in AUDIO_ARRAYS:
                sound = sound_of_bytes(value, True) if member.endswith(".flac") else torch.from_numpy(value)
                sample[member.partition(".")[0]] = sound
            elif member == "json":
                sample.update(value)
        return sample


def _batch(samples: Sequence[Batch]) -> Batch:
    batch = collate(samples)
    del batch["__key__"]  # the library's
    return batch
