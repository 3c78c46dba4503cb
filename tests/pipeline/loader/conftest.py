"""Small token datasets with many row groups, written by the command `tokenize`, and their rows as Arrow has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.export.build import ShardBuilder

ROWS_A_GROUP = 32
SETTINGS = ("gate=off", "run.report=false", "units.files=2", "export.splits.ratios={train: 0.9, val: 0.1}")


def tokenize(motion: Path, output: Path, codec: Path, *settings: str) -> Path:
    """Run `tokenize` with row groups of 32 rows and shards of about 200 windows."""
    words = ["tokenize", str(motion), str(output), "-c", str(codec), "--local"]
    for setting in (*SETTINGS, "export.windows_per_shard=200", *settings):
        words += ["--set", setting]
    publish = ShardBuilder.publish_shard

    def in_small_groups(builder, index, split, tokens, *, is_shuffled):
        return publish(replace(builder, group_rows=ROWS_A_GROUP), index, split, tokens, is_shuffled=is_shuffled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardBuilder, "publish_shard", in_small_groups)
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return output


def rows_of(output: Path, split: str | None = "train") -> pa.Table:
    """Every token row of a split, in order of the shards."""
    manifest = json.loads((output / "dataset.json").read_text())
    shards = [shard for shard in manifest["shards"]["parquet"] if split in (None, shard["split"])]
    tables = [pq.read_table(output / shard["path"]) for shard in shards]
    plain = [table.set_column(5, "source", table["source"].cast(pa.string())) for table in tables]
    return pa.concat_tables(plain)


def ids_of(batch: dict) -> list[tuple[str, int]]:
    """(clip, start frame) of each sample of a batch."""
    return list(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True))


@pytest.fixture(scope="session")
def loader_tools() -> SimpleNamespace:
    """The functions above, for test modules."""
    return SimpleNamespace(tokenize=tokenize, rows_of=rows_of, ids_of=ids_of)


@pytest.fixture(scope="session")
def motion(tmp_path_factory: pytest.TempPathFactory, write_clips: Callable[..., Path]) -> Path:
    """24 clips of 7 to 352 frames."""
    return write_clips(tmp_path_factory.mktemp("motion"), {f"clip{n:02}": 7 + 15 * n for n in range(24)})


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory, motion: Path, tiny_codec: Path) -> Path:
    """A dataset of about 900 windows in several shards of both formats."""
    return tokenize(motion, tmp_path_factory.mktemp("tokens") / "out", tiny_codec)


@pytest.fixture(scope="session")
def shuffled_tokens(tmp_path_factory: pytest.TempPathFactory, motion: Path, tiny_codec: Path) -> Path:
    """The same windows, those of a clip scattered over all shards."""
    return tokenize(motion, tmp_path_factory.mktemp("shuffled") / "out", tiny_codec, "export.shuffle=global")


@pytest.fixture
def copied(tokens: Path, tmp_path: Path) -> Path:
    """A dataset that a test may harm."""
    return Path(shutil.copytree(tokens, tmp_path / "copied"))
