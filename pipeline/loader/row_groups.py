"""Row groups of Parquet token shards, read in ranges and kept in memory up to a bound.

Knows no Ray or torch, and nothing of order. Of a shard it reads the footer, and of row groups the columns asked for.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.contract.columns import array_columns
from pipeline.contract.schema import RESERVED_COLUMNS
from pipeline.contract.specs import Contract
from pipeline.dataset.manifest import ShardFile
from pipeline.errors import ConfigError, VerifyError
from pipeline.storage import Folder, StoredFile
from pipeline.tables import metadata_of, open_parquet, read_footer

Check = Literal["auto", "size", "sha256"]
IntArray = NDArray[np.int64]
Column: TypeAlias = Any
"""Values of one column: arrays of one shape and our own numbers as numpy; text, sound and carried values as Arrow."""

FOOTER_BYTES = 64 << 10
"""Read from a shard's end at once; a longer footer takes a second request."""
GAP_BYTES = 16 << 10
"""Unneeded bytes that are read along where they save a request."""
READ_THREADS = 8


@dataclass(frozen=True)
class Reading:
    """How shards are read; nothing here changes a batch.

    Args:
        cache_bytes: of decoded row groups that are kept in memory, in each process.
        check: what is compared before the first row of a shard is read: its size, or its SHA-256 too, for which
            all of it is read once in each process. `auto`: the SHA-256 on local disks, the size elsewhere.
        storage_options: passed to fsspec.

    Raises:
        ConfigError: a bound is negative, or the check is unknown.
    """

    cache_bytes: int = 512 << 20
    check: Check = "auto"
    storage_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.cache_bytes < 0:
            raise ConfigError(f"reading.cache_bytes must be 0 or more, found {self.cache_bytes}")
        if self.check not in get_args(Check):
            raise ConfigError(f"reading.check must be one of {', '.join(get_args(Check))}, found {self.check!r}")


class RowGroups:
    """The row groups of chosen shards, one behind the other: built by `TokenDataset`, which keeps it for its life.

    Footers are read at once, so that missing and cut shards are found before training. It pickles without what it
    holds of rows, and reads footers again where it is unpickled; what was altered in between counts as unchecked.

    Args:
        folder: of the dataset.
        shards: in order.
        contract: that every footer has to hold.
        columns: to read; None: all.
        reading: bounds and checks.

    Raises:
        ConfigError: a column is unknown.
        VerifyError: a shard is missing, or not the one that dataset.json names.
        StorageError: storage did not answer after all retries.
    """

    def __init__(
        self,
        folder: Folder,
        shards: Sequence[ShardFile],
        contract: Contract,
        columns: Sequence[str] | None,
        reading: Reading,
    ) -> None:
        self._folder, self._shards, self._contract, self._reading = folder, tuple(shards), contract, reading
        self._wanted = None if columns is None else tuple(columns)
        self._is_local = folder.local_path("") is not None
        self._checked: set[int] = set()
        self._open()
        sizes = [[footer.row_group(g).num_rows for g in range(footer.num_row_groups)] for footer in self._footers]
        self.sizes: IntArray = np.array([rows for groups in sizes for rows in groups], np.int64)
        """(num_groups,) rows of each."""
        self._shard_of = np.repeat(np.arange(len(sizes)), [len(groups) for groups in sizes])
        self._number_of = np.concatenate([np.arange(len(groups)) for groups in sizes])
        self._ends = np.cumsum(self.sizes)

    def _open(self) -> None:
        self._kept: OrderedDict[int, dict[str, Column]] = OrderedDict()
        self._kept_bytes: dict[int, int] = {}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            opened = list(pool.map(self._footer, self._shards))
        self._footers, self._files = [footer for footer, _ in opened], [file for _, file in opened]
        schema = self._footers[0].schema.to_arrow_schema()
        names = schema.names if self._wanted is None else self._wanted
        unknown = [name for name in names if name not in schema.names]
        if unknown:
            raise ConfigError(
                f"{self._folder} has no column {', '.join(map(repr, unknown))}; there are: {', '.join(schema.names)}"
            )
        self.columns = tuple(name for name in schema.names if name in names)
        arrays = array_columns(self._contract.codec, self._contract.corpus)
        self._shapes = {array.name: (array.dtype, array.shape) for array in arrays}

    def __getstate__(self) -> dict[str, object]:
        gone = ("_kept", "_kept_bytes", "_footers")
        return {name: value for name, value in self.__dict__.items() if name not in gone}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        known = self._files
        self._open()
        self._checked = {position for position in self._checked if self._files[position] == known[position]}

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return int(self._ends[-1])

    @property
    def cache_bytes(self) -> int:
        """Bound of the row groups kept."""
        return self._reading.cache_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes of the decoded row groups that are kept at the moment."""
        return sum(self._kept_bytes.values())

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest row group once decoded, about."""
        sizes = [
            sum(chunk.total_uncompressed_size for chunk in _chunks(footer, number, self.columns))
            for footer in self._footers
            for number in range(footer.num_row_groups)
        ]
        return int(max(sizes))

    def group_of(self, rows: IntArray) -> IntArray:
        """Return the row group of each row, (n,) -> (n,)."""
        return np.searchsorted(self._ends, rows, side="right")

    def check(self) -> None:
        """Compare the SHA-256 of every shard; what passed is not compared again in this process or those it starts.

        Raises:
            VerifyError: a shard is missing or altered.
        """
        for shard in range(len(self._shards)):
            self._check_content(shard)

    def gather(self, rows: IntArray, names: Sequence[str] | None = None) -> dict[str, Column]:
        """Return columns of rows, in the order asked for; each row group is read at most once.

        Args:
            rows: (n,) numbers of rows, all shards counted through.
            names: of columns; None: all that this reader has.

        Returns:
            name -> (n, ..) array, or Arrow array of n values.

        Raises:
            VerifyError: a shard is missing or altered.
            StorageError: storage did not answer after all retries.
        """
        groups = self.group_of(rows)
        order = np.argsort(groups, kind="stable")
        needed, firsts = np.unique(groups[order], return_index=True)
        places = np.split(order, firsts[1:])
        names = self.columns if names is None else tuple(names)
        found: dict[str, Column] = {}
        texts: dict[str, list[pa.Array]] = {}
        for (group, columns), place in zip(self._groups(needed, names), places, strict=True):
            local = rows[place] - (self._ends[group] - self.sizes[group])
            for name in names:
                column = columns[name]
                if isinstance(column, np.ndarray):
                    if name not in found:
                        found[name] = np.empty((len(rows), *column.shape[1:]), column.dtype)
                    found[name][place] = column[local]
                else:
                    texts.setdefault(name, []).append(_plain(column.take(pa.array(local))))
        back = pa.array(np.argsort(order, kind="stable"))
        found.update({name: pa.concat_arrays(parts).take(back) for name, parts in texts.items()})
        return {name: found[name] for name in names if name in found}

    def _groups(self, numbers: IntArray, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Column]]]:
        """Yield row groups with the columns named; where storage is remote, several are fetched at once."""
        for first in range(0, len(numbers), READ_THREADS):
            some = [int(number) for number in numbers[first : first + READ_THREADS]]
            fetched = {} if self._is_local else self._fetch(some, names)
            for number in some:
                kept = self._kept.pop(number, {})
                missing = [] if number in fetched else _missing(kept, names)
                read = self._read(number, missing) if missing else fetched.pop(number, {})
                columns = {**kept, **read}
                self._keep(number, columns)
                yield number, columns

    def _fetch(self, numbers: Sequence[int], names: Sequence[str]) -> dict[int, dict[str, Column]]:
        """Return what is lacking of row groups, by row group, read at the same time; kept ones are whole here too."""
        found = {number: self._kept.get(number, {}) for number in numbers}
        lacking = {number: missing for number, kept in found.items() if (missing := _missing(kept, names))}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            shards = sorted({int(self._shard_of[number]) for number in lacking})
            list(pool.map(self._check_again, shards))  # each once: a shard of several row groups is read as a whole
            read = pool.map(self._read, lacking.keys(), lacking.values())
            return {
                **found,
                **{number: {**found[number], **columns} for number, columns in zip(lacking, read, strict=True)},
            }

    def _keep(self, number: int, columns: dict[str, Column]) -> None:
        """Put a row group at the end of those kept, and forget from the beginning what is too much."""
        self._kept[number] = columns
        self._kept_bytes[number] = sum(column.nbytes for column in columns.values())
        while self.held_bytes > self._reading.cache_bytes:
            self._kept_bytes.pop(self._kept.popitem(last=False)[0])

    def _read(self, number: int, names: Sequence[str]) -> dict[str, Column]:
        position, group = int(self._shard_of[number]), int(self._number_of[number])
        shard, footer = self._shards[position], self._footers[position]
        self._check_again(position)
        try:
            pieces = [
                (start, self._folder.read_range_of(self._files[position], start, stop))
                for start, stop in self._ranges(footer, group, names)
            ]
            file = open_parquet(pa.PythonFile(_Pieces(pieces, shard.bytes), "r"), footer)
            table = file.read_row_group(group, columns=list(names), use_threads=False)
        except FileNotFoundError as error:
            if self._folder.exists(shard.path):
                raise self._altered(shard, "it was replaced after it was opened") from error
            raise self._gone(shard) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._altered(shard, f"row group {group} cannot be read ({error})") from error
        return {name: self._column(name, table[name]) for name in names}

    def _column(self, name: str, column: pa.ChunkedArray) -> Column:
        array = column.combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        kind = array.type
        if name in self._shapes:
            dtype, shape = self._shapes[name]
            first = array.offset * kind.byte_width
            data = np.frombuffer(array.buffers()[1], np.uint8)[first : first + len(array) * kind.byte_width]
            return data.view(np.dtype(dtype)).reshape(len(array), *shape)
        if pa.types.is_integer(kind) and name in RESERVED_COLUMNS:  # others may lack a value in some row groups only
            numbers: NDArray[np.generic] = array.to_numpy(zero_copy_only=False)
            return numbers
        return array

    def _ranges(self, footer: pq.FileMetaData, group: int, names: Sequence[str]) -> list[tuple[int, int]]:
        """Return the byte ranges of the columns of a row group, near ones as one."""
        ranges: list[tuple[int, int]] = []
        for chunk in _chunks(footer, group, names):
            offsets = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
            start = min(offsets)
            stop = start + chunk.total_compressed_size
            if ranges and start - ranges[-1][1] <= GAP_BYTES:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        return ranges

    def _footer(self, shard: ShardFile) -> tuple[pq.FileMetaData, StoredFile]:
        """Read a shard's end, hold it against dataset.json, and return it with size and version of the file."""
        file = self._folder.stat(shard.path)
        if file is None:
            raise self._gone(shard)
        if file.num_bytes != shard.bytes:
            raise self._altered(shard, f"wanted {shard.bytes} bytes, found {file.num_bytes}")
        try:
            tail = self._tail(shard, FOOTER_BYTES)
            needed = int.from_bytes(tail[-8:-4], "little") + 8
            if needed > len(tail):
                tail = self._tail(shard, needed)
            footer = metadata_of(read_footer(io.BytesIO(tail), shard.bytes))
        except FileNotFoundError as error:
            raise self._gone(shard) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._altered(shard, f"its footer cannot be read ({error})") from error
        if not self._contract.is_in(footer.metadata):
            raise self._altered(shard, "the contract in its footer is not the one in dataset.json")
        if footer.num_rows != shard.windows:
            raise self._altered(shard, f"wanted {shard.windows} windows, found {footer.num_rows}")
        return footer, file

    def _tail(self, shard: ShardFile, num_bytes: int) -> bytes:
        return self._folder.read_range(shard.path, max(0, shard.bytes - num_bytes), shard.bytes)

    def _check_again(self, position: int) -> None:
        """Check what is to be checked before rows are read; on a local disk also whether the file was touched since."""
        shard = self._shards[position]
        if self._is_local and self._folder.stat(shard.path) != self._files[position]:
            self._checked.discard(position)
            _, file = self._footer(shard)
            self._check_content(position)
            self._files[position] = file  # only now: what failed is compared again each time
        elif self._reading.check == "sha256" or (self._reading.check == "auto" and self._is_local):
            self._check_content(position)

    def _check_content(self, position: int) -> None:
        if position in self._checked:
            return
        shard = self._shards[position]
        try:
            digest = hashlib.sha256(self._folder.read(shard.path)).hexdigest()
        except FileNotFoundError as error:
            raise self._gone(shard) from error
        if digest != shard.sha256:
            raise self._altered(shard, f"wanted SHA-256 {shard.sha256}, found {digest}")
        self._checked.add(position)

    def _gone(self, shard: ShardFile) -> VerifyError:
        return VerifyError(f"{self._folder}/{shard.path} is missing, dataset.json names it: {_NEXT_STEP}")

    def _altered(self, shard: ShardFile, finding: str) -> VerifyError:
        return VerifyError(f"{self._folder}/{shard.path} is not what dataset.json names: {finding}; {_NEXT_STEP}")


_NEXT_STEP = "restore it, or run motion-tokens verify"


class _Pieces(io.RawIOBase):
    """A file of which some ranges are in memory: what Arrow reads from. Any other read is a fault of ours."""

    def __init__(self, pieces: Sequence[tuple[int, bytes]], num_bytes: int) -> None:
        self._pieces, self._num_bytes, self._at = pieces, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._num_bytes if size < 0 else min(self._num_bytes, self._at + size)
        for start, data in self._pieces:
            if start <= self._at and stop <= start + len(data):
                found = data[self._at - start : stop - start]
                self._at = stop
                return found
        raise ValueError(f"bytes {self._at} to {stop} were not read")


def _missing(kept: Mapping[str, Column], names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in kept]


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _chunks(footer: pq.FileMetaData, group: int, names: Sequence[str]) -> list[pq.ColumnChunkMetaData]:
    found = footer.row_group(group)
    chunks = [found.column(number) for number in range(found.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.removesuffix(".list.element") in names]
