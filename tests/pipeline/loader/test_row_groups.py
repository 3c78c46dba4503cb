"""Row groups: only what is needed is read, and whatever is not what dataset.json names is refused by name."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import VerifyError
from pipeline.loader import Reading, TokenDataset
from pipeline.storage import RetryPolicy

with pytest.MonkeyPatch.context() as beside:
    beside.syspath_prepend(str(Path(__file__).parents[2] / "faults"))
    from weather_proxy import Weather, WeatherProxy, running


def shards(folder: Path, split: str = "train") -> list[Path]:
    manifest = json.loads((folder / "dataset.json").read_text())
    return [folder / shard["path"] for shard in manifest["shards"]["parquet"] if shard["split"] == split]


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
    for _ in range(2):
        with pytest.raises(VerifyError, match=path.name):
            dataset[0]
    path.write_bytes(data)
    assert dataset[0], "the same bytes again, though the file is newer"
    path.unlink()
    with pytest.raises(VerifyError, match=f"{path.name} is missing"):
        dataset[0]


def test_what_was_altered_before_a_worker_began_is_refused_there(copied):
    """Where the parent had compared the shard before."""
    dataset = TokenDataset(str(copied))
    dataset.check()
    pickled = pickle.dumps(dataset)
    flip_a_bit(shards(copied)[0])
    with pytest.raises(VerifyError, match=f"{shards(copied)[0].name} is not what dataset.json names: wanted SHA-256"):
        pickle.loads(pickled)[0]


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


def test_batches_on_s3_are_right_though_answers_break_off(on_s3, s3, tokens, loader_tools, monkeypatch):
    url, options, _ = on_s3
    monkeypatch.setattr(RetryPolicy, "draw_waits", lambda policy: iter((0.05,) * 8))
    rows = loader_tools.rows_of(tokens).to_pylist()
    with running(WeatherProxy(s3.endpoint, Weather(0.1, 0.1, 0.1, 0.2, 0), 5)) as proxy:
        there = {**options, "client_kwargs": {"endpoint_url": proxy.endpoint}}
        dataset = TokenDataset(url, reading=Reading(storage_options=there))
        batch = dataset[:]
    assert batch["clip_id"] == [row["clip_id"] for row in rows]
    assert batch["this_bits"].numpy().tobytes() == b"".join(row["this_bits"] for row in rows)


def test_window_on_s3_takes_one_request_where_the_clip_is_in_one_row_group(on_s3, tokens, loader_tools):
    url, options, proxy = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options))
    row = loader_tools.rows_of(tokens).to_pylist()[0]
    dataset.clip_windows.rows_of(row["clip_id"])
    proxy.asked.clear()
    window = dataset.window(row["clip_id"], row["start_frame"])
    assert window["this_bits"].numpy().tobytes() == row["this_bits"]
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


def test_shards_on_s3_are_compared_once_each(on_s3, tokens):
    url, options, proxy = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options, check="sha256"))
    proxy.asked.clear()
    dataset.batch(range(len(dataset)))
    sizes = {path.name: path.stat().st_size for path in shards(tokens)}
    whole = [name for verb, name, size in proxy.asked if verb == "GET" and size in (-1, sizes[name])]
    assert sorted(whole) == sorted(sizes)


@pytest.mark.parametrize("harm", [lambda data: data[:-1] + b"!", lambda data: data[:-100], lambda data: data + b"more"])
def test_a_shard_altered_on_s3_after_it_was_opened_is_named(on_s3, s3, harm):
    """Though nothing but row groups is read any more: the server compares the version."""
    import s3fs

    url, options, _ = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options, cache_bytes=0))
    assert dataset[0]
    files = s3fs.S3FileSystem(use_listings_cache=False, **s3.options)
    path = f"loader/tokens/{dataset.shards[0].path}"
    files.pipe_file(path, harm(files.cat_file(path)))
    with pytest.raises(VerifyError, match=f"{Path(path).name} is not what dataset.json names: it was replaced"):
        dataset[0]


def test_a_shard_deleted_on_s3_is_named(on_s3, s3):
    import s3fs

    url, options, _ = on_s3
    dataset = TokenDataset(url, reading=Reading(storage_options=options, cache_bytes=0))
    assert dataset[0]
    s3fs.S3FileSystem(use_listings_cache=False, **s3.options).rm_file(f"loader/tokens/{dataset.shards[0].path}")
    with pytest.raises(VerifyError, match=f"{Path(dataset.shards[0].path).name} is missing"):
        dataset[0]
