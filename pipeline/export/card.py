"""OUT/README.md: the dataset card, for people and for the Hugging Face hub.

Knows no Ray, torch or storage, and no time or place: equal datasets have equal cards.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pipeline.contract.columns import emitted_columns, side_fields
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.tar_shard import window_bytes


def dataset_card(manifest: Manifest) -> str:
    """Return the card of a dataset; its own checksum in `manifest.files` plays no part."""
    parquet: dict[str, list[object]] = {}
    for shard in manifest.shards.get("parquet", ()):
        parquet.setdefault(shard.split, []).append(shard)
    return _template().render(
        parquet=parquet,
        both=len(manifest.shards) > 1,
        tar_bytes=window_bytes(manifest.contract.codec, manifest.contract.corpus),
        arrays=emitted_columns(manifest.contract.codec, manifest.contract.corpus),
        sides=[field.name for field in side_fields(manifest.contract.corpus)],
        counts=manifest.counts,
        hours=sum(part.hours for part in manifest.splits.values()),
        codec=manifest.contract.codec,
        corpus=manifest.contract.corpus,
        numerics=manifest.contract.numerics,
        status=manifest.status,
        splits=manifest.splits,
        drops=manifest.drops,
        where=manifest.export.get("where", ""),
        is_listed="clips" in manifest.export,
        spec_id=manifest.spec_id,
    )


@cache
def _template() -> Template:
    """Return the card's template, compiled once per process."""
    loader = PackageLoader("pipeline", "export")
    cards = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return cards.get_template("card.md.j2")
