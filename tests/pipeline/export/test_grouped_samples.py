"""Exports whose WebDataset samples hold several windows: every window once, in groups of a clip, split and shard."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.contract.resolve import export_spec
from pipeline.contract.specs import TokenSpec
from pipeline.errors import ConfigError
from pipeline.hashing import digest_of
from pipeline.settings.job_config import SplitConfig, load_config
from pipeline.settings.where import parse_where

BOTH = ("parquet", "webdataset")
few = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_source, tools):
    """Fifteen units of one to four clips, some too short for a window."""
    random = np.random.default_rng(0)
    units = {
        f"{random.integers(2**62):020x}": [
            tools.Clip(f"clip{n:02}-{k}", int(random.integers(3, 90)), "ab"[n % 2]) for k in range(1 + n % 4)
        ]
        for n in range(15)
    }
    return make_source(tmp_path_factory.mktemp("store"), units)


def samples_of(exported):
    """Of every tar, in order: split and the samples' fields, as a reader without this project's code finds them."""
    found = []
    for shard in exported.manifest["shards"]["webdataset"]:
        with tarfile.open(fileobj=io.BytesIO(exported.files[shard["path"]])) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        samples = []
        for name, content in members.items():
            if name.endswith(".json"):
                key = name.removesuffix(".json")
                bits = [np.load(io.BytesIO(members[f"{key}.{half}.npy"])) for half in ("prev", "this")]
                samples.append(json.loads(content) | {"bits": bits})
        found.append((shard["split"], samples))
    return found


def windows_of(sample):
    prev, this = sample["bits"]
    starts = sample["start_frame"]
    assert prev.shape == this.shape == (len(starts), 8, 1)
    return [(sample["clip_id"], start, prev[n].tobytes(), this[n].tobytes()) for n, start in enumerate(starts)]


def keys_of(rows):
    return [(row["clip_id"], row["start_frame"], row["prev_bits"], row["this_bits"]) for row in rows]


@few
@given(
    size=st.integers(2, 9),
    target=st.integers(4, 60),
    where=st.sampled_from(["", "start_frame >= 10 and speaker == 'a'", "start_frame != 15 and start_frame != 40"]),
    ratios=st.sampled_from([{"train": 1.0}, {"train": 0.6, "val": 0.4}]),
)
def test_grouped_samples_hold_every_window_once_in_order(tmp_path_factory, source, tools, size, target, where, ratios):
    fields = {
        "formats": BOTH,
        "windows_per_shard": target,
        "splits": SplitConfig(ratios=ratios),
        "where": parse_where(where).text if where else "",
    }
    grouped = tools.export(source, tmp_path_factory.mktemp("o"), tools.spec(windows_per_sample=size, **fields))
    shards = samples_of(grouped)
    assert [keys_of(rows) for rows in grouped.shards] == [
        [window for sample in samples for window in windows_of(sample)] for _, samples in shards
    ]
    for _, samples in shards:
        for sample, following in pairwise([*samples, {"clip_id": None}]):
            starts = sample["start_frame"]
            assert all(0 < after - start <= 5 for start, after in pairwise(starts))
            is_cut = following["clip_id"] == sample["clip_id"] and following["start_frame"][0] - starts[-1] <= 5
            assert len(starts) == size if is_cut else len(starts) <= size
    plain = tools.export(source, tmp_path_factory.mktemp("p"), tools.spec(**fields))
    assert plain.manifest["shards"]["parquet"] == grouped.manifest["shards"]["parquet"]
    assert plain.manifest["counts"] == grouped.manifest["counts"]
    assert [s["windows"] for s in plain.manifest["shards"]["webdataset"]] == [
        s["windows"] for s in grouped.manifest["shards"]["webdataset"]
    ]


def test_a_shard_that_is_cut_inside_a_unit_cuts_its_samples(tmp_path, make_source, tools):
    source = make_source(tmp_path / "store", {"u": [tools.Clip("long", 5 * 23)]})
    spec = tools.spec(formats=BOTH, windows_per_shard=4, windows_per_sample=3)
    sizes = [
        [len(sample["start_frame"]) for sample in samples]
        for _, samples in samples_of(tools.export(source, tmp_path / "o", spec))
    ]
    assert sizes == [[3, 3, 1], [3, 3, 2], [3, 3, 2]]


def test_one_window_a_sample_is_named_nowhere(tools):
    plain = tools.spec(formats=BOTH)
    assert plain.export_id == "89b2fc92d2529691"
    assert tools.spec(formats=BOTH, windows_per_sample=1).described() == plain.described()
    assert "windows_per_sample" not in plain.described()
    grouped = tools.spec(formats=BOTH, windows_per_sample=4)
    assert grouped.described() == plain.described() | {"windows_per_sample": 4}
    assert grouped.export_id == digest_of(grouped.described()) != plain.export_id
    without_tars = tools.spec(windows_per_sample=4, shuffle="global")
    assert without_tars.export_id == tools.spec(shuffle="global").export_id


@pytest.mark.parametrize("shuffle", ["shard", "global"])
def test_grouped_samples_are_not_shuffled(tools, make_codec, make_corpus, shuffle):
    message = rf"export\.windows_per_sample=4 and export\.shuffle={shuffle}: .* set export\.shuffle=none"
    with pytest.raises(ConfigError, match=message):
        tools.spec(formats=BOTH, windows_per_sample=4, shuffle=shuffle)
    config = load_config(None, ["export.windows_per_sample=4", f"export.shuffle={shuffle}"])
    with pytest.raises(ConfigError, match=message):
        export_spec(config, TokenSpec(codec=make_codec(), corpus=make_corpus()))


def test_the_card_says_what_a_grouped_sample_holds(tmp_path, source, tools):
    def card(name, **changes):
        return tools.export(source, tmp_path / name, tools.spec(formats=BOTH, **changes)).files["README.md"].decode()

    grouped, plain = card("a", windows_per_sample=4), card("b")
    assert "up to 4 consecutive windows of a clip" in grouped
    assert "uint8 (windows, 8, 1)" in grouped
    assert "consecutive" not in plain
