"""TokenDataset: right content by index and by clip, only what is needed is read, and clear refusals."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from pipeline.errors import (
    ConfigError,
    ContractMismatchError,
    InputNotFoundError,
    OutputMismatchError,
    VerifyError,
)
from pipeline.loader import Reading, TokenDataset, collate

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parents[2] / "faults"))
    from weather_proxy import Weather, WeatherProxy, running

PLAIN = ("clip_id", "start_frame", "num_frames", "prev_valid_frames", "this_valid_frames", "source")


@pytest.fixture(params=["tokens", "shuffled_tokens"])
def either(request: pytest.FixtureRequest) -> Path:
    """A dataset whose clips stand together, and one whose windows are scattered."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def copied(tokens: Path, tmp_path: Path) -> Path:
    """A dataset that a test may harm."""
    return Path(shutil.copytree(tokens, tmp_path / "copied"))


def shards(folder: Path, split: str = "train") -> list[Path]:
    manifest = json.loads((folder / "dataset.json").read_text())
    return [folder / shard["path"] for shard in manifest["shards"]["parquet"] if shard["split"] == split]


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
    with pytest.raises(IndexError, match=f"0 to {len(rows) - 1}"):
        dataset[len(rows)]


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
        kept = dataset.row_groups._kept_bytes
        assert sum(kept.values()) <= cache_bytes
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


def flip_a_bit(path: Path) -> None:
    """Alter one byte of the bits of the last row group, the size staying."""
    chunk = pq.ParquetFile(path).metadata.row_group(-1 % pq.ParquetFile(path).num_row_groups).column(7)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"wanted \d+ bytes, found \d+"),
        (lambda path: path.write_bytes(bytes(len(path.read_bytes()))), "footer cannot be read"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"motion_dim":4', b'"motion_dim":5')),
            "the contract",
        ),
    ],
)
def test_a_harmed_shard_is_refused_at_once(copied, harm, words):
    harm(shards(copied)[1])
    with pytest.raises(VerifyError, match=words) as caught:
        TokenDataset(str(copied))
    assert shards(copied)[1].name in str(caught.value)


def test_an_altered_shard_of_equal_size_is_refused_before_its_rows_are_given(copied):
    flip_a_bit(shards(copied)[1])
    dataset = TokenDataset(str(copied))
    first = pq.ParquetFile(shards(copied)[0]).metadata.num_rows
    assert dataset[first - 1]
    with pytest.raises(VerifyError, match=f"{shards(copied)[1].name} is not what dataset.json names: wanted SHA-256"):
        dataset[first]
    with pytest.raises(VerifyError, match="wanted SHA-256"):
        TokenDataset(str(copied)).check()
    assert TokenDataset(str(copied), reading=Reading(check="size"))[first], "asked not to look"


@pytest.mark.parametrize("check", ["size", "sha256"])
def test_a_shard_altered_or_deleted_under_the_loader_is_named(copied, check):
    dataset = TokenDataset(str(copied), reading=Reading(cache_bytes=0, check=check))
    path = shards(copied)[0]
    assert dataset[0]
    data = path.read_bytes()
    flip_a_bit(path)
    with pytest.raises(VerifyError, match=path.name):
        dataset[0]
    path.write_bytes(data)
    assert dataset[0], "the same bytes again, though the file is newer"
    path.unlink()
    with pytest.raises(VerifyError, match=f"{path.name} is missing"):
        dataset[0]


def test_a_damaged_index_is_named(copied):
    dataset = TokenDataset(str(copied))
    for path in copied.rglob("clips.parquet"):
        path.write_bytes(b"PAR1")
    with pytest.raises(VerifyError, match=r"index/clips.parquet is missing or altered"):
        dataset.find("clip01", 0)


class CountingProxy(WeatherProxy):
    """Passes everything on, and remembers what was asked for."""

    def __init__(self, server: str) -> None:
        super().__init__(server, Weather(0, 0, 0, 0, 0), 0)
        self.asked: list[tuple[str, str, int]] = []

    def next_fault(self, request: Any) -> str:
        """Remember method, file and bytes asked for."""
        ends = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        num_bytes = int(ends[2]) - int(ends[1]) + 1 if ends else -1
        self.asked.append((request.command, request.path.rpartition("/")[2].partition("?")[0], num_bytes))
        return ""


@pytest.fixture
def on_s3(tokens: Path, s3: Any) -> Iterator[tuple[str, dict[str, Any], CountingProxy]]:
    """The dataset on the S3 server, and a counter between it and the client."""
    import s3fs

    url = s3.url("loader/tokens")
    s3fs.S3FileSystem(use_listings_cache=False, **s3.options).put(f"{tokens}/", "loader/tokens/", recursive=True)
    with running(CountingProxy(s3.endpoint)) as proxy:
        assert isinstance(proxy, CountingProxy)
        yield url, {**s3.options, "client_kwargs": {"endpoint_url": proxy.endpoint}}, proxy


def test_random_access_on_s3_reads_footers_once_and_then_only_row_groups(on_s3, tokens, loader_tools):
    url, options, proxy = on_s3
    rows = loader_tools.rows_of(tokens).to_pylist()
    dataset = TokenDataset(url, columns=["start_frame", "this_bits"], reading=Reading(storage_options=options))
    paths = shards(tokens)
    opened = [asked for asked in proxy.asked if asked[1].endswith(".parquet")]
    assert sorted(opened) == sorted(
        [(verb, path.name, size) for path in paths for verb, size in (("HEAD", -1), ("GET", path.stat().st_size))]
    ), "a look at the size and one footer a shard (these are shorter than what is read at once)"
    for _ in range(2):
        proxy.asked.clear()
        asked = [3, 40, len(rows) - 1, 5, 41]
        batch = dataset.batch(asked)
        assert batch["this_bits"].numpy().tobytes() == b"".join(rows[index]["this_bits"] for index in asked)
        if _ == 0:
            assert len(proxy.asked) == 3, "one request a row group"
            assert {name for _, name, _ in proxy.asked} == {paths[0].name, paths[-1].name}
            assert sum(size for *_, size in proxy.asked) <= sum(
                group_bytes(path, group) for path, group in ((paths[0], 0), (paths[0], 1), (paths[-1], -1))
            )
        else:
            assert proxy.asked == [], "all of it is kept"


def test_window_on_s3_takes_one_request_where_the_clip_is_in_one_row_group(on_s3, tokens, loader_tools):
    url, options, proxy = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options))
    row = loader_tools.rows_of(tokens).to_pylist()[0]
    dataset.clip_windows.rows_of(row["clip_id"])
    proxy.asked.clear()
    assert_equal(dataset.window(row["clip_id"], row["start_frame"]), row)
    assert len(proxy.asked) == 1


def group_bytes(path: Path, group: int) -> int:
    """Bytes of all columns of a row group."""
    metadata = pq.ParquetFile(path).metadata
    found = metadata.row_group(group % metadata.num_row_groups)
    return sum(found.column(number).total_compressed_size for number in range(found.num_columns))


def test_columns_far_apart_are_read_apart(tmp_path, write_job, loader_tools):
    """Of rows as large as the released codec's, unneeded bits are not read along."""
    job = write_job(tmp_path, 8, 1)
    out = loader_tools.tokenize(job / "motion", tmp_path / "out", job / "codec.safetensors", "window.stride=50")
    dataset = TokenDataset(str(out), columns=["clip_id", "this_bits"], reading=Reading(check="size"))
    asked: list[int] = []
    honest = dataset.folder.read_range

    def counted(path: str, start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return honest(path, start, stop)

    dataset.folder.read_range = counted  # type: ignore[method-assign]
    assert dataset[0]["this_bits"].shape == (181, 4)
    rows = int(dataset.group_sizes[0])
    assert rows == 32
    assert rows * 724 <= sum(asked) < rows * 724 + 4096


def test_a_shard_deleted_on_s3_is_named(on_s3, s3):
    import s3fs

    url, options, _ = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options, cache_bytes=0))
    assert dataset[0]
    s3fs.S3FileSystem(use_listings_cache=False, **s3.options).rm_file(f"loader/tokens/{dataset.shards[0].path}")
    with pytest.raises(VerifyError, match=f"{Path(dataset.shards[0].path).name} is missing"):
        dataset[0]


def test_loader_imports_no_ray(tokens: Path) -> None:
    program = (
        "import sys; from pipeline.loader import TarStream, TokenDataset, TokenStream\n"
        "assert 'torch' in sys.modules\n"
        f"next(iter(TokenStream(TokenDataset({str(tokens)!r}), 8))); next(iter(TarStream({str(tokens)!r})))\n"
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
