"""TokenDataset: right content by index and by clip, only what is needed is read, and clear refusals."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.errors import (
    ConfigError,
    ContractMismatchError,
    InputNotFoundError,
    OutputMismatchError,
)
from pipeline.loader import Reading, TokenDataset, collate

PLAIN = ("clip_id", "start_frame", "num_frames", "prev_valid_frames", "this_valid_frames", "source")


@pytest.fixture(params=["tokens", "shuffled_tokens"])
def either(request: pytest.FixtureRequest) -> Path:
    """A dataset whose clips stand together, and one whose windows are scattered."""
    found: Path = request.getfixturevalue(request.param)
    return found


def assert_equal(sample: dict[str, Any], row: dict[str, Any]) -> None:
    for name in PLAIN:
        assert sample[name] == row[name], name
    for name in ("prev_bits", "this_bits"):
        assert (sample[name].dtype, sample[name].shape) == (torch.uint8, (8, 1))
        assert bytes(sample[name].numpy().tobytes()) == row[name]


@pytest.mark.parametrize("split", ["train", "val", None])
def test_samples_are_the_rows_of_the_shards_in_order(either, loader_tools, split):
    rows = loader_tools.rows_of(either, split).to_pylist()
    dataset = TokenDataset(str(either), split)
    assert len(dataset) == len(rows)
    for index in (0, 15, len(rows) // 2, len(rows) - 1):
        assert_equal(dataset[index], rows[index])
    assert_equal(dataset[-1], rows[-1])
    for index in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"0 to {len(rows) - 1}, found {index}"):
            dataset[index]


def test_batch_keeps_the_order_asked_for_and_repeats(tokens, loader_tools):
    rows = loader_tools.rows_of(tokens).to_pylist()
    asked = np.random.default_rng(0).integers(0, len(rows), 300)
    batch = TokenDataset(str(tokens)).batch(asked)
    assert list(batch) == [*PLAIN, "prev_bits", "this_bits"]
    assert batch["clip_id"] == [rows[index]["clip_id"] for index in asked]
    assert batch["source"] == [rows[index]["source"] for index in asked]
    assert batch["start_frame"].tolist() == [rows[index]["start_frame"] for index in asked]
    assert batch["prev_bits"].shape == (300, 8, 1)
    assert batch["prev_bits"].numpy().tobytes() == b"".join(rows[index]["prev_bits"] for index in asked)


def test_slices_are_batches_and_an_empty_batch_is_refused(tokens):
    dataset = TokenDataset(str(tokens))
    assert dataset[-3:]["start_frame"].tolist() == dataset.batch([-3, -2, -1])["start_frame"].tolist()
    for nothing in ([], slice(5, 5)):
        with pytest.raises(IndexError, match="at least one sample"):
            dataset[nothing]


def test_find_and_window_give_every_window_by_clip_and_start(either, loader_tools):
    dataset = TokenDataset(str(either))
    for index, row in enumerate(loader_tools.rows_of(either).to_pylist()[::7]):
        assert dataset.find(row["clip_id"], row["start_frame"]) == 7 * index
        assert_equal(dataset.window(row["clip_id"], row["start_frame"]), row)


def test_find_names_what_there_is(tokens):
    dataset = TokenDataset(str(tokens))
    clip_id = dataset[0]["clip_id"]
    with pytest.raises(InputNotFoundError, match="near it are 0, 5"):
        dataset.find(clip_id, 1)
    with pytest.raises(InputNotFoundError, match=r"no window at start_frame 5000"):
        dataset.find(clip_id, 5000)
    with pytest.raises(InputNotFoundError, match=f"no windows of clip 'x{clip_id}'.*{clip_id}"):
        dataset.find(f"x{clip_id}", 0)


def test_only_columns_asked_for_are_given(tokens):
    dataset = TokenDataset(str(tokens), columns=["this_bits", "clip_id"])
    assert dataset.columns == ["clip_id", "this_bits"]
    assert set(dataset[3]) == {"this_bits", "clip_id"}
    with pytest.raises(ConfigError, match=r"no column 'audio', 'speaker'; there are: clip_id, start_frame"):
        TokenDataset(str(tokens), columns=["audio", "clip_id", "speaker"])
    with pytest.raises(ConfigError, match=r"columns must be a list of names.*write \['this_bits'\]"):
        TokenDataset(str(tokens), columns="this_bits")


@pytest.mark.parametrize(("field", "value"), [("check", "sha"), ("cache_bytes", -1)])
def test_reading_refuses_what_means_nothing(field, value):
    with pytest.raises(ConfigError, match=f"reading.{field} must be .*, found {value!r}"):
        Reading(**{field: value})


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_give_the_same_samples(tokens, loader_tools, context):
    rows = loader_tools.rows_of(tokens)
    dataset = TokenDataset(str(tokens), reading=Reading(cache_bytes=10_000))
    _ = dataset[0]
    loader = DataLoader(dataset, 50, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert [name for batch in batches for name in batch["clip_id"]] == rows["clip_id"].to_pylist()
    joined = torch.cat([batch["this_bits"] for batch in batches])
    assert joined.numpy().tobytes() == b"".join(rows["this_bits"].to_pylist())
    by_sampler = DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 50, False), batch_size=None)
    assert sorted(n for batch in by_sampler for n in batch["clip_id"]) == sorted(rows["clip_id"].to_pylist())
    ours = next(iter(DataLoader(dataset, 50, collate_fn=collate)))
    assert {name: type(value) for name, value in ours.items()} == {n: type(v) for n, v in batches[0].items()}
    assert ours["start_frame"].tolist() == batches[0]["start_frame"].tolist()


def test_dataset_pickles_without_rows(tokens):
    dataset = TokenDataset(str(tokens))
    before = len(pickle.dumps(dataset))
    whole = dataset.batch(range(len(dataset)))
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < before + 500
    assert torch.equal(copy.batch(range(len(dataset)))["prev_bits"], whole["prev_bits"])


def test_row_groups_are_kept_up_to_the_bound(tokens, monkeypatch):
    def groups_read(cache_bytes: int) -> int:
        dataset = TokenDataset(str(tokens), reading=Reading(cache_bytes=cache_bytes, check="size"))
        read: list[str] = []
        honest = dataset.folder.read_range
        monkeypatch.setattr(dataset.folder, "read_range", lambda path, *ends: read.append(path) or honest(path, *ends))
        for _ in range(2):
            for index in range(0, len(dataset), 16):
                _ = dataset[index]
        assert dataset.row_groups.held_bytes <= cache_bytes
        return len(read)

    dataset = TokenDataset(str(tokens))
    assert groups_read(1 << 20) == len(dataset.group_sizes)
    assert groups_read(8000) == 2 * len(dataset.group_sizes), "some fit, but not all until the second pass"
    assert groups_read(0) == 2 * len(range(0, len(dataset), 16))


@pytest.mark.parametrize("num_windows", [2, 3, 7])
def test_samples_of_consecutive_windows(either, loader_tools, num_windows):
    rows = loader_tools.rows_of(either).to_pylist()
    starts: dict[str, list[int]] = {}
    for row in rows:
        starts.setdefault(row["clip_id"], []).append(row["start_frame"])
    wanted = sorted(
        (clip_id, tuple(sorted(own)[first : first + num_windows]))
        for clip_id, own in starts.items()
        for first in range(0, len(own) - num_windows + 1, num_windows)
    )
    dataset = TokenDataset(str(either), windows_per_sample=num_windows)
    batch = dataset.batch(range(len(dataset)))
    found = [(name, tuple(own)) for name, own in zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True)]
    assert sorted(found) == wanted
    assert dataset.num_left_out == len(rows) - num_windows * len(wanted)
    assert int(dataset.group_sizes.sum()) == len(dataset)
    assert batch["this_bits"].shape == (len(wanted), num_windows, 8, 1)
    assert batch["num_frames"].shape == (len(wanted),)
    one = TokenDataset(str(either))
    for number in (0, len(wanted) - 1):
        clip_id, own = found[number]
        assert dataset.find(clip_id, own[0]) == number
        for place, start in enumerate(own):
            assert torch.equal(dataset[number]["this_bits"][place], one.window(clip_id, start)["this_bits"])
    with pytest.raises(InputNotFoundError, match="no sample begins"):
        dataset.find(found[0][0], found[0][1][1])


@pytest.mark.parametrize("shuffle", ["none", "global"])
def test_samples_do_not_reach_over_windows_that_a_filter_left_out(tokens, tmp_path, shuffle):
    words = ["export", str(tokens), str(tmp_path / "out"), "--where", "start_frame < 25 or start_frame >= 60"]
    result = CliRunner().invoke(app, [*words, "--local", "--set", f"export.shuffle={shuffle}"])
    assert result.exit_code == 0, result.output
    dataset = TokenDataset(str(tmp_path / "out"), windows_per_sample=2)
    batch = dataset.batch(range(len(dataset)))
    starts = dict.fromkeys(batch["clip_id"])
    for clip_id in starts:
        rows = [
            row for name, row in zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True) if name == clip_id
        ]
        starts[clip_id] = sorted(map(tuple, rows))
    long = [rows for rows in starts.values() if rows[-1][1] >= 70]
    assert long
    for rows in long:
        assert rows[:3] == [(0, 5), (10, 15), (60, 65)], "20 stands alone before the gap"
    assert (batch["start_frame"].diff(dim=1) <= 5).all()


def test_windows_per_sample_that_no_clip_has_are_refused(tokens):
    with pytest.raises(ConfigError, match="no clip of split 'train' has 900 windows"):
        TokenDataset(str(tokens), windows_per_sample=900)
    with pytest.raises(ConfigError, match="must be 1 or more"):
        TokenDataset(str(tokens), windows_per_sample=0)


def test_another_codec_is_refused_by_field(tokens):
    codec = TokenDataset(str(tokens)).codec
    assert len(TokenDataset(str(tokens), codec=codec)) > 0
    other = codec.model_copy(update={"patch_nums": (1, 2, 4), "weights": "0" * 64})
    with pytest.raises(
        ContractMismatchError, match=r'weights: wanted "0+", found .*patch_nums: wanted \[1,2,4\], found \[1,2,5\]'
    ):
        TokenDataset(str(tokens), codec=other)


def test_what_is_no_published_dataset_is_refused(copied, tmp_path):
    with pytest.raises(InputNotFoundError, match=r"split 'test' has no windows; there are: train \(\d+ windows\), val"):
        TokenDataset(str(copied), "test")
    with pytest.raises(InputNotFoundError, match=r"holds no dataset.json"):
        TokenDataset(str(tmp_path))
    manifest = json.loads((copied / "dataset.json").read_text())
    (copied / "dataset.json").write_text(json.dumps({**manifest, "status": "staged"}))
    with pytest.raises(OutputMismatchError, match="is staged, not published"):
        TokenDataset(str(copied))
    tars = {"webdataset": manifest["shards"]["webdataset"]}
    (copied / "dataset.json").write_text(json.dumps({**manifest, "shards": tars}))
    with pytest.raises(OutputMismatchError, match="no parquet shards, only webdataset"):
        TokenDataset(str(copied))


def test_an_earlier_version_is_read_by_its_name(tokens):
    (version,) = (path for path in (tokens / "versions").iterdir() if path.suffix == ".json")
    assert len(TokenDataset(str(version))) == len(TokenDataset(str(tokens)))


def test_loader_imports_no_ray(tokens: Path) -> None:
    program = (
        "import sys; from pipeline.loader import TokenDataset, TokenStream\n"
        "assert 'torch' in sys.modules\n"
        f"next(iter(TokenStream(TokenDataset({str(tokens)!r}), 8)))\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    light = "import sys, pipeline.loader, pipeline.loader.order; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)


def test_loader_names_what_it_exports(loader_tools: SimpleNamespace) -> None:
    import pipeline.loader

    for name in pipeline.loader.__all__:
        assert getattr(pipeline.loader, name) is not None
    assert dir(pipeline.loader) == sorted(pipeline.loader.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.loader.nothing  # type: ignore[attr-defined]
