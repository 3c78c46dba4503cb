"""The suite loader: one pass over token shards against one npy a window and int32 Parquet, same windows, checked.

Knows how to make the data and to run the three sides; counts and JSON are result.py's.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from bitwise_vae.bits import pack_bits, unpack_bits
from bitwise_vae.config import BitwiseVAEConfig
from jobs.bench.data import make_data
from jobs.bench.result import BenchRequest, BenchResult, Report
from jobs.session.session import open_session
from pipeline.errors import DataError
from pipeline.job.tokenize_job import JobControl, tokenize_dataset
from pipeline.loader import Ranks, Shuffle, TokenDataset, TokenStream
from pipeline.run.observer import JobObserver
from pipeline.run.record import JobRecord
from pipeline.run.stopping import StopSwitch
from pipeline.settings.job_config import TokenizeRequest
from pipeline.storage import Folder

SUITE = "loader"
BATCH_SIZE = 256
COLUMNS = ("clip_id", "start_frame", "prev_bits", "this_bits")
PARQUET_ROWS = 1024
"""Rows of a row group of the int32 Parquet file, as many as in ours."""

CODEC = BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2)
"""Of the codec that makes the tokens: small, since only the number of tokens and bits counts here."""

Name = tuple[str, int]
Batches = Iterator[tuple[list[Name], torch.Tensor, torch.Tensor]]
"""(clip, start frame) of the samples, prev and this: packed (n, tokens, bytes) uint8, or (n, tokens, bits) int32."""


@dataclass(frozen=True)
class _Side:
    """One way of reading all windows once, in a shuffled order."""

    name: str
    read: Callable[[int], Batches]


class WindowFiles(Dataset[tuple[str, int, torch.Tensor]]):
    """One npy a window, int32 bits of both halves, as plain scripts leave them; `np.load` a sample."""

    def __init__(self, folder: str, names: Sequence[Name]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, int, torch.Tensor]:
        """Return clip, start frame and bits."""
        clip_id, start = self.names[index]
        return clip_id, start, torch.from_numpy(np.load(f"{self.folder}/{clip_id}-{start}.npy", allow_pickle=False))


def measure_loader(request: BenchRequest, report: Report) -> list[BenchResult]:
    """Read all windows once with each side in turn, and compare what they gave.

    Each pass is timed from opening to its last batch, in this process, without workers, files in the page cache. The
    first pass of each side is not counted: there every batch is compared.

    Raises:
        DataError: a side gives another set of windows, or other bits.
    """
    times: dict[str, list[float]] = {}
    num_steps = request.repeats + 2
    with tempfile.TemporaryDirectory(prefix="motion-tokens-bench-") as place, _one_thread():
        report("making tokens", 0, num_steps)
        sides = make_sides(Folder(place), request)
        report("comparing batches", 1, num_steps)
        expected = _content(sides[0].read(-1))
        if len(expected) != request.windows:
            raise DataError(f"wanted {request.windows} windows, the loader gave {len(expected)}")
        for side in sides[1:]:
            require_content(side.name, _content(side.read(-1)), expected)
        for repeat in range(request.repeats):
            report(f"reading, {repeat + 1} of {request.repeats}", repeat + 2, num_steps)
            for side in sides:
                begin = time.perf_counter()
                num_windows = sum(len(bits) for _, bits, _ in side.read(repeat))
                times.setdefault(side.name, []).append(request.windows / (time.perf_counter() - begin))
                if num_windows != request.windows:
                    raise DataError(f"{side.name}: wanted {request.windows} windows, found {num_windows}")
        report("done", num_steps, num_steps)
    details = {"windows": request.windows, "repeats": request.repeats, "batch_size": BATCH_SIZE}
    ours = tuple(times[sides[0].name])
    return [
        BenchResult(
            SUITE, f"batches, against {side.name}", "windows/s", ours, side.name, tuple(times[side.name]), details
        )
        for side in sides[1:]
    ]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread, as in the workers of a DataLoader."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def make_sides(folder: Folder, request: BenchRequest) -> list[_Side]:
    """Write the same windows three times, and return our side first."""
    data = make_data(folder.child("data"), request.windows, CODEC)
    config = request.config.model_copy(
        update={"gate": "off", "run": request.config.run.model_copy(update={"local": True, "report": False})}
    )
    tokens = folder.url_of("tokens")
    job = TokenizeRequest((data.folder.url_of("motion"),), tokens, data.checkpoint, None, None, config)
    with open_session(config.run) as executor:
        tokenize_dataset(job, executor, JobObserver(), JobRecord(), JobControl("bench", StopSwitch()))
    dataset = TokenDataset(tokens, None, columns=COLUMNS)
    names, bits = _all_bits(dataset)
    for (clip_id, start), window in zip(names, bits, strict=True):
        folder.publish(f"npy/{clip_id}-{start}.npy", _npy(unpack_bits(window).astype(np.int32)))
    folder.publish("int32.parquet", _parquet(names, bits))
    files = WindowFiles(folder.url_of("npy"), names)
    return [
        _Side("TokenStream", lambda seed: _of_stream(tokens, seed)),
        _Side("one npy a window, int32", lambda seed: _of_files(files, seed)),
        _Side("Parquet of int32 lists", lambda seed: _of_parquet(folder.url_of("int32.parquet"), seed)),
    ]


def require_content(name: str, found: dict[Name, bytes], expected: dict[Name, bytes]) -> None:
    """Raise DataError where a side gives another set of windows, or other bits."""
    if found.keys() != expected.keys():
        raise DataError(f"{name}: gives {len(found)} windows, not the {len(expected)} of the loader")
    wrong = sum(bits != found[window] for window, bits in expected.items())
    if wrong:
        raise DataError(f"{name}: bits of {wrong} windows are not the loader's")


def _of_stream(url: str, seed: int) -> Batches:
    dataset = TokenDataset(url, None, columns=COLUMNS)
    stream = TokenStream(dataset, BATCH_SIZE, shuffle=Shuffle(seed=seed), ranks=Ranks(even="exact"))
    for batch in stream:
        names = list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))
        yield names, batch["prev_bits"], batch["this_bits"]


def _of_files(files: WindowFiles, seed: int) -> Batches:
    generator = torch.Generator().manual_seed(seed + 1)
    for clip_ids, starts, bits in DataLoader(files, BATCH_SIZE, shuffle=True, generator=generator):
        yield list(zip(clip_ids, starts.tolist(), strict=True)), bits[:, 0], bits[:, 1]


def _of_parquet(path: str, seed: int) -> Batches:
    """Read row groups in a random order, rows of each shuffled: the fastest of plain ways."""
    rng = np.random.default_rng(seed + 1)
    file = pq.ParquetFile(path)
    num_bits = int(file.schema_arrow.field("prev_bits").metadata[b"bits"])
    for group in rng.permutation(file.num_row_groups):
        table = file.read_row_group(group)
        columns = (table[name].combine_chunks() for name in ("prev_bits", "this_bits"))
        prev, this = (column.flatten().to_numpy().reshape(table.num_rows, -1, num_bits) for column in columns)
        names = list(zip(table["clip_id"].to_pylist(), table["start_frame"].to_pylist(), strict=True))
        order = rng.permutation(table.num_rows)
        for first in range(0, len(order), BATCH_SIZE):
            chosen = order[first : first + BATCH_SIZE]
            yield [names[row] for row in chosen], torch.from_numpy(prev[chosen]), torch.from_numpy(this[chosen])


def _content(batches: Batches) -> dict[Name, bytes]:
    """Return the packed bits of every window; one that is given twice is a fault."""
    found: dict[Name, bytes] = {}
    for names, *halves in batches:
        packed = [half.numpy() if half.dtype == torch.uint8 else pack_bits(half.numpy()) for half in halves]
        for name, prev, this in zip(names, *packed, strict=True):
            if name in found:
                raise DataError(f"window {name} is given twice")
            found[name] = prev.tobytes() + this.tobytes()
    return found


def _all_bits(dataset: TokenDataset) -> tuple[list[Name], npt.NDArray[np.uint8]]:
    batch = dataset.batch(range(len(dataset)))
    names = list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))
    return names, torch.stack([batch["prev_bits"], batch["this_bits"]], dim=1).numpy()


def _npy(array: npt.NDArray[np.int32]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def _parquet(names: Sequence[Name], packed: npt.NDArray[np.uint8]) -> bytes:
    """Return an int32 list of all bits of a half a row, written with pyarrow's own settings."""
    bits = unpack_bits(packed).astype(np.int32)
    size = bits.shape[2] * bits.shape[3]
    metadata = {b"bits": str(bits.shape[3]).encode()}
    kind = pa.list_(pa.int32(), size)
    schema = pa.schema(
        [
            pa.field("clip_id", pa.string()),
            pa.field("start_frame", pa.int64()),
            pa.field("prev_bits", kind, metadata=metadata),
            pa.field("this_bits", kind, metadata=metadata),
        ]
    )
    halves = [pa.FixedSizeListArray.from_arrays(pa.array(bits[:, half].reshape(-1)), size) for half in (0, 1)]
    table = pa.table([[name for name, _ in names], [start for _, start in names], *halves], schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=PARQUET_ROWS)
    return sink.getvalue()
