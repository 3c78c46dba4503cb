"""The stages as Ray runs them: a task that reads, and actors that tokenize and write."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from pipeline.executors.executor import Tokenizer
from pipeline.stages.blocks import MotionBlock, TokenBlock, units_from_text
from pipeline.stages.read import UnitReader
from pipeline.stages.write import FragmentWriter
from pipeline.storage import num_retries

if TYPE_CHECKING:  # it imports torch, which workers that only read or write need not wait for
    from pipeline.stages.tokenize_stage import TokenizerSettings


class HostedReader:
    """The read stage as a Ray task: one row of units in, one row of motion out; none once the job stops."""

    def __init__(self, reader: UnitReader, hub: Any) -> None:
        self._reader, self._hub = reader, hub

    def __call__(self, row: pa.Table) -> pa.Table:
        """Read a row of units."""
        if ray.get(self._hub.is_stopping.remote()):
            return self._reader.read(()).to_table()
        with followed(self._hub, "read", row):
            return self._reader.read(units_from_text(row["units"][0].as_py())).to_table()


class HostedTokenizer:
    """The tokenizer as a Ray actor; Ray builds it once a worker and calls it once a row, on a GPU from two threads."""

    def __init__(self, hub: Any, settings: TokenizerSettings, host: Callable[..., Tokenizer]) -> None:
        self._hub = hub
        with told(hub):
            self._tokenizer = host(ray.get(hub.codec.remote()), settings, _HubListener(hub))
        self._turn: AbstractContextManager[Any] = nullcontext() if self._tokenizer.is_shared else threading.Lock()
        hub.ready.remote(ray.get_runtime_context().get_node_id())

    def __call__(self, row: pa.Table) -> pa.Table:
        """Tokenize a row of motion."""
        with followed(self._hub, "tokenize", row), self._turn:
            return self._tokenizer.tokenize(MotionBlock.from_table(row)).to_table()


class HostedWriter:
    """The write stage as a Ray actor, called from several threads: one row of bits in, one account out."""

    def __init__(self, hub: Any, writer: FragmentWriter) -> None:
        self._hub, self._writer = hub, writer

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write a row of tokens, and return its account."""
        with followed(self._hub, "write", row):
            return self._writer.write(TokenBlock.from_table(row)).to_table()


@contextmanager
def told(hub: Any) -> Iterator[None]:
    """Tell the driver of an exception through the hub: Ray passes some on as text, and some not at all."""
    try:
        yield
    except Exception as error:
        ray.get(hub.fail.remote(error))
        raise


@contextmanager
def followed(hub: Any, stage: str, row: pa.Table) -> Iterator[None]:
    """Tell the hub that a row of units goes through a stage, without waiting, and of an exception there."""
    units = row["units"][0].as_py().encode()
    run, retried = zlib.crc32(units), num_retries()
    hub.enter.remote(stage, run, units.count(b'"unit_key"'))
    with told(hub):
        yield
    hub.leave.remote(stage, run, num_retries() - retried)


@dataclass(frozen=True)
class _HubListener:
    """Passes a tokenizer's words on to the hub, without waiting."""

    hub: Any

    def begun(self, num_windows: int, num_bytes: int) -> None:
        self.hub.begun.remote(num_windows, num_bytes)

    def encoded(self, num_windows: int) -> None:
        self.hub.encoded.remote(num_windows)
