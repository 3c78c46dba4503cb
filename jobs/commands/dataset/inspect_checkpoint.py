"""What inspect prints of a checkpoint: configuration, statistics, digests, and what its metadata say.

Knows no weights but their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitwise_vae.checkpoints.checkpoint import read_checkpoint
from bitwise_vae.checkpoints.tensors import tensors_from_bytes
from bitwise_vae.model import BitwiseVAE
from jobs.output.display import size_text
from pipeline.inspect.recognise import Found
from pipeline.stages.codec import Codec, open_codec

CONFIG_KEY = "config"
CHARS_SHOWN = 120


def print_checkpoint(found: Found, preset: str | None, model_config: str | None, console: Console) -> None:
    """Print what a checkpoint holds.

    Raises:
        CodecError: it is no such checkpoint, or its configuration is stated nowhere.
    """
    options = found.folder.options
    codec = open_codec(found.folder.url_of(found.name), preset=preset, model_config=model_config, options=options)
    data = found.folder.read(found.name)
    tensors, metadata = tensors_from_bytes(data, found.name)
    model = read_checkpoint(codec.data, "codec.safetensors")
    table = Table(box=None, padding=(0, 2), show_header=False)
    config = model.config
    table.add_row(
        "motion", f"{config.motion_dim} dims at {config.fps:g} fps, windows of 2 x {config.window_frames} frames"
    )
    schedule = ", ".join(map(str, config.patch_nums))
    table.add_row("scales", f"{schedule}  [dim]{config.num_tokens} tokens of {config.code_dim} bits a half[/dim]")
    sizes = f"hidden size {config.hidden_dim}, depth {config.depth}, {config.num_heads} heads"
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    table.add_row("model", f"{sizes}  [dim]{num_weights:,} weights, {_types(tensors)}, {size_text(len(data))}[/dim]")
    table.add_row("weights", f"[dim]{codec.spec.weights[:32]}[/dim]")
    table.add_row("statistics", f"[dim]{codec.spec.statistics[:32]}[/dim]")
    for name, text in sorted(metadata.items()):
        if name != CONFIG_KEY:
            _add_metadata(table, name, text)
    if set(metadata) <= {CONFIG_KEY}:
        table.add_row(
            "quality", "[yellow]no record of it[/yellow]  [dim]whoever trained it may have told elsewhere[/dim]"
        )
    console.print(table)
    console.print(_statistics(model, codec))


def _types(tensors: Mapping[str, Any]) -> str:
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if hasattr(tensor, "dtype")}
    return ", ".join(sorted(found)) or "wrapped"


def _add_metadata(table: Table, name: str, text: str) -> None:
    """Print an entry of the metadata: JSON objects key by key."""
    try:
        tree = json.loads(text)
    except ValueError:
        tree = text
    if not isinstance(tree, dict):
        table.add_row(escape(name), escape(str(tree)[:CHARS_SHOWN]))
        return
    for position, (key, value) in enumerate(tree.items()):
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)[:CHARS_SHOWN]
        table.add_row("" if position else escape(name), f"{escape(key)}  [dim]{escape(shown)}[/dim]")


def _statistics(model: BitwiseVAE, codec: Codec) -> Table:
    """Return the motion statistics by group of columns."""
    table = Table(box=None, padding=(0, 2))
    for head in ("columns", "from", "to", "mean", "std", "std 1"):
        table.add_column(head, justify="left" if head == "columns" else "right")
    for group in model.config.motion_groups:
        part = slice(group.start, group.stop)
        mean, std = codec.mean[part], codec.std[part]
        unit = f" [dim]{escape(group.unit)}[/dim]" if group.unit else ""
        means, stds = (f"{values.min():.3g} to {values.max():.3g}" for values in (mean, std))
        row = (str(group.start), str(group.stop - 1), means, stds, str(int((std == 1).sum())))
        table.add_row(f"{escape(group.name)}{unit}", *row)
    return table
