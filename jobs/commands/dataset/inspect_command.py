"""The command inspect: what stands at a path, and the bits of one window as a picture.

Knows no data: recognise.py says what it is, and each kind has its printer here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitwise_vae.bits import unpack_bits
from jobs.commands.codec.statistics_summary import print_statistics
from jobs.commands.dataset.bit_picture import bit_picture
from jobs.commands.dataset.inspect_motion import print_motion, print_motion_folder
from jobs.output.display import counted, size_text
from pipeline.contract.columns import token_schema
from pipeline.contract.drop_reasons import NEXT_STEP, DropReason
from pipeline.contract.schema import EVERY_DATASETS_COLUMNS
from pipeline.contract.specs import CodecSpec, Contract
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.open_dataset import OpenDataset, open_dataset, packed_bits, windows_of_clip
from pipeline.errors import ConfigError, InputNotFoundError
from pipeline.inspect.recognise import Found, Kind, recognise
from pipeline.inspect.token_shard import TokenShard, open_token_shard
from pipeline.settings.job_config import JobConfig
from pipeline.statistics.motion_statistics import statistics_from_bytes

WITH_WINDOWS = (Kind.DATASET, Kind.TOKEN_PARQUET, Kind.TOKEN_TAR)
SHOWN = 5


@dataclass(frozen=True)
class InspectRequest:
    """What a person asked for; `window` counts a clip's windows from 0."""

    path: str
    clip: str | None
    window: int | None
    preset: str | None = None
    model_config: str | None = None


def run_inspect(request: InspectRequest, config: JobConfig, console: Console) -> None:
    """Say what stands at a path.

    Raises:
        RequestError: nothing does, or nothing that is known; no such clip or window.
        VerifyError: a dataset or shard is damaged.
    """
    found = _find(request.path, config)
    if found.kind not in WITH_WINDOWS and (request.clip is not None or request.window is not None):
        raise ConfigError(f"--clip and --window choose among windows of tokens: {found.place} is a {found.kind}")
    console.print(f"[bold]{found.kind}[/bold]  {escape(found.place)}", highlight=False, soft_wrap=True)
    if found.kind is Kind.DATASET:
        _inspect_dataset(found, request, console)
    elif found.kind is Kind.BEGUN:
        _print_begun(found, console)
    elif found.kind in (Kind.TOKEN_PARQUET, Kind.TOKEN_TAR):
        _inspect_shard(open_token_shard(found), request, console)
    elif found.kind is Kind.CHECKPOINT:
        from jobs.commands.dataset.inspect_checkpoint import print_checkpoint

        print_checkpoint(found, request.preset, request.model_config, console)
    elif found.kind is Kind.STATISTICS:
        print_statistics(statistics_from_bytes(found.folder.read(found.name), found.place), console)
    elif found.kind is Kind.MOTION:
        print_motion(found, config, console)
    else:
        print_motion_folder(found, config, console)


def _find(path: str, config: JobConfig) -> Found:
    """Return what stands at a path, or else the shipped codec of that name."""
    try:
        return recognise(path, config.run.storage_options)
    except InputNotFoundError:
        from bitwise_vae.checkpoints.checkpoint import pretrained_path
        from bitwise_vae.config import PRETRAINED

        if path not in PRETRAINED:
            raise
        return recognise(str(pretrained_path(path)))


def _inspect_dataset(found: Found, request: InspectRequest, console: Console) -> None:
    dataset = open_dataset(found.folder)
    _print_dataset(dataset, console)
    if not len(dataset.kept):
        return
    clip_id = request.clip if request.clip is not None else dataset.kept["clip_id"][0].as_py()
    rows = windows_of_clip(dataset, next(iter(dataset.manifest.shards)), clip_id)
    _print_window(rows, dataset.manifest.contract.codec, request, console)


def _print_dataset(dataset: OpenDataset, console: Console) -> None:
    manifest = dataset.manifest
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_row("status", f"{manifest.status}  [dim]version {manifest.version}, spec {manifest.spec_id}[/dim]")
    if manifest.gate is not None:
        failed = f": {', '.join(manifest.gate.failed)}" if manifest.gate.failed else ""
        table.add_row(
            "gate", f"{manifest.gate.outcome.replace('_', ' ')}{failed}  [dim]mode {manifest.gate.mode}[/dim]"
        )
    for name, split in manifest.splits.items():
        whole = f"{counted(split.clips, 'clip')}, {split.frames:,} frames, {split.hours:.2f} h"
        table.add_row(escape(name), f"{counted(split.windows, 'window')}  [dim]{whole}[/dim]")
    for name, shards in manifest.shards.items():
        sizes = [shard.bytes for shard in shards]
        largest = f", the largest {size_text(max(sizes))}" if len(sizes) > 1 else ""
        table.add_row(name, f"{counted(len(shards), 'shard')}, {size_text(sum(sizes))}[dim]{largest}[/dim]")
    _add_contract(table, manifest.contract)
    shuffle = manifest.export["shuffle"]
    table.add_row("export", f"[dim]shuffle {shuffle}, {manifest.export_id}[/dim]")
    _add_drops(table, manifest)
    console.print(table)


def _add_contract(table: Table, contract: Contract) -> None:
    codec, corpus, numerics = contract.codec, contract.corpus, contract.numerics
    schedule = ", ".join(map(str, codec.patch_nums))
    table.add_row("codec", f"{codec.motion_dim} dims at {codec.fps:g} fps, {codec.code_dim} bits a token")
    table.add_row("scales", f"{schedule}  [dim]{codec.num_tokens} tokens, {codec.half_bytes} bytes a half[/dim]")
    table.add_row("weights", f"[dim]{codec.weights[:16]}, statistics {codec.statistics[:16]}[/dim]")
    rule = corpus.window
    windows = f"every {rule.stride} frames, tail {rule.tail}" + (f", {rule.phases} phases" if rule.phases else "")
    table.add_row("windows", f"{windows}  [dim]{corpus.precision}, resample {corpus.resample}[/dim]")
    beside = [name for name in token_schema(codec, corpus).names if name not in EVERY_DATASETS_COLUMNS]
    if beside:
        table.add_row("beside bits", escape(", ".join(beside)))
    table.add_row("made on", f"[dim]{escape(numerics.device)}, torch {numerics.torch}[/dim]")


def _add_drops(table: Table, manifest: Manifest) -> None:
    for reason, count in manifest.drops.items():
        step = NEXT_STEP[DropReason(reason)]
        table.add_row("[yellow]dropped[/yellow]", f"{count:,} {reason}  [dim]{escape(step)}[/dim]")


def _print_begun(found: Found, console: Console) -> None:
    files = found.folder.list_files("_store")
    fragments = [file for file in files if "/fragments/" in file.path]
    size = size_text(sum(file.num_bytes for file in fragments))
    console.print(f"  no dataset.json yet; {len(fragments):,} units are tokenized ({size})", highlight=False)
    console.print("  the same tokenize command again continues it", highlight=False)


def _inspect_shard(shard: TokenShard, request: InspectRequest, console: Console) -> None:
    rows = shard.rows
    table = Table(box=None, padding=(0, 2), show_header=False)
    ids = rows["clip_id"].combine_chunks()
    counts = {item["values"]: item["counts"] for item in pc.value_counts(ids).to_pylist()}
    table.add_row("windows", f"{len(rows):,}  [dim]of {counted(len(counts), 'clip')}:{_examples(counts)}[/dim]")
    table.add_row("columns", f"[dim]{', '.join(rows.schema.names)}[/dim]")
    if shard.contract is not None:
        _add_contract(table, shard.contract)
    else:
        table.add_row("codec", f"{shard.codec.code_dim} bits a token, {shard.codec.num_tokens} tokens a half")
        known = "scales of the artalk preset" if shard.has_schedule else "scales unknown"
        table.add_row("", f"[yellow]no dataset.json around it: {known}[/yellow]")
    if shard.has_ledger:
        table.add_row("", "[dim]a fragment of a token store: its footer lists the unit's clips[/dim]")
    console.print(table)
    if not len(rows):
        return
    clip_id = request.clip if request.clip is not None else ids[0].as_py()
    if clip_id not in counts:
        raise InputNotFoundError(f"the shard has no windows of clip {clip_id!r}: there are{_examples(counts)}")
    _print_window(rows.filter(pc.equal(rows["clip_id"], clip_id)).sort_by("start_frame"), shard.codec, request, console)


def _examples(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{escape(name)} ({count:,})" for name, count in list(counts.items())[:SHOWN])
    return f" {shown}{', ..' if len(counts) > SHOWN else ''}"


def _print_window(rows: pa.Table, codec: CodecSpec, request: InspectRequest, console: Console) -> None:
    """Print the bits of `this` of one of a clip's windows, scale by scale.

    Raises:
        InputNotFoundError: the clip has fewer windows.
    """
    number = request.window or 0
    clip_id, total = rows["clip_id"][0].as_py(), len(rows)
    if number >= total:
        raise InputNotFoundError(f"clip {clip_id!r} has {total} windows here: --window 0 to {total - 1}, not {number}")
    row = {name: rows[name][number].as_py() for name in ("start_frame", "num_frames", "this_valid_frames")}
    packed = packed_bits(rows.slice(number, 1))[0, 1]
    scales = scales_of(packed, codec.patch_nums, codec.code_dim)
    first, stop = row["start_frame"], row["start_frame"] + row["this_valid_frames"]
    console.print()
    console.print(
        f"[bold]{escape(clip_id)}[/bold]  window {number} of 0 to {total - 1}: frames {first:,} to {stop - 1:,}"
        f" of {row['num_frames']:,}",
        highlight=False,
        soft_wrap=True,
    )
    has_unicode = console.encoding.lower().startswith("utf")
    for line in bit_picture(scales, console.width, has_unicode):
        console.print(line, style="cyan", markup=False, highlight=False, no_wrap=True, overflow="crop")
    shares = ", ".join(f"{100 * scale.mean():.0f} %" for scale in scales)
    key = "a mark is 1" if has_unicode else "' upper bit is 1, . lower, : both"
    console.print(
        f"[dim]this, scale by scale: tokens across, their {codec.code_dim} bits down; {key}; ones {shares}[/dim]",
        highlight=False,
    )


def scales_of(packed: NDArray[np.uint8], patch_nums: Sequence[int], code_dim: int) -> list[NDArray[np.uint8]]:
    """Return (tokens, code_dim) bits of every scale.

    Args:
        packed: (half_bytes,) of one half of a window.
    """
    bits = unpack_bits(packed.reshape(sum(patch_nums), code_dim // 8))
    return np.split(bits, np.cumsum(patch_nums)[:-1])
