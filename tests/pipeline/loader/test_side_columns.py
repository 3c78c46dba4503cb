"""What stands beside the bits comes out in its own shape: emitted arrays, carried values, sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import ConfigError
from pipeline.loader import Ranks, Shuffle, TokenDataset, TokenStream, collate

FRAMES, RATE_HZ, WINDOW = (23, 40, 61), 16_000, 5
SAMPLES_A_FRAME = RATE_HZ // 25
PAIRS = 2


def sound(clip: int) -> np.ndarray:
    """The sound of a clip: no sample is zero, so that zeros tell where there is none."""
    rng = np.random.default_rng(clip)
    return rng.integers(1, 30_000, FRAMES[clip] * SAMPLES_A_FRAME).astype(np.int16)


@pytest.fixture(scope="module", params=["int16", "flac"])
def rich(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, loader_tools: Any, tiny_codec: Path):
    """A dataset with everything that can stand beside the bits, of three clips; one has no text."""
    folder = tmp_path_factory.mktemp("rich")
    (folder / "motion").mkdir()
    motions = [np.random.default_rng(n).normal(size=(frames, 4)).cumsum(0) / 3 for n, frames in enumerate(FRAMES)]
    table = pa.table(
        {
            "clip_id": ["a", "b", "c"],
            "motion": pa.array([motion.tolist() for motion in motions], pa.list_(pa.list_(pa.float32(), 4))),
            "fps": [25.0] * 3,
            "speaker": [7, 8, 9],
            "text": ["hello", None, "you"],
            "sound": pa.array([(sound(n) / 32768).tolist() for n in range(3)], pa.list_(pa.float32())),
            "rate": [RATE_HZ] * 3,
        }
    )
    pq.write_table(table, folder / "motion" / "clips.parquet")
    settings = (
        "export.splits.ratios={train: 1}",
        "emit=[latent, flips, decoded_prev]",
        f"flips.pairs={PAIRS}",
        "input.carry=[speaker, text]",
        "input.audio.field=sound",
        f"input.audio.rate_hz={RATE_HZ}",
        f"input.audio.encoding={request.param}",
    )
    return loader_tools.tokenize(folder / "motion", folder / "out", tiny_codec, *settings)


def heard(clip: int, start: int) -> np.ndarray:
    """The sound of the frames from `start` on, zeros where the clip has none."""
    whole = sound(clip)
    first = start * SAMPLES_A_FRAME
    places = np.arange(first, first + WINDOW * SAMPLES_A_FRAME)
    inside = (places >= 0) & (places < len(whole))
    return np.where(inside, whole[np.clip(places, 0, len(whole) - 1)], 0)


def check(batch: dict[str, Any], dataset: TokenDataset) -> None:
    count = len(batch["clip_id"])
    assert (batch["this_latent"].dtype, batch["this_latent"].shape) == (torch.float16, (count, 5, 8))
    for name in ("flip_targets", "flip_bits"):
        assert (batch[name].dtype, batch[name].shape) == (torch.uint8, (count, PAIRS, 8, 1))
    assert (batch["decoded_prev_bits"].dtype, batch["decoded_prev_bits"].shape) == (torch.uint8, (count, 8, 1))
    assert batch["audio_rate_hz"].tolist() == [RATE_HZ] * count
    for number, (clip_id, start) in enumerate(zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True)):
        clip = "abc".index(clip_id)
        assert batch["speaker"][number] == 7 + clip
        assert batch["text"][number] == ["hello", None, "you"][clip]
        assert batch["this_audio"].dtype == torch.int16
        assert np.array_equal(batch["this_audio"][number].numpy(), heard(clip, start))
        assert np.array_equal(batch["prev_audio"][number].numpy(), heard(clip, start - WINDOW))


def test_streams_give_side_columns_in_their_shapes(rich):
    dataset = TokenDataset(str(rich))
    batches = list(TokenStream(dataset, 6, shuffle=Shuffle(groups=2), ranks=Ranks(even="exact")))
    for batch in batches:
        check(batch, dataset)
    assert sum(len(batch["clip_id"]) for batch in batches) == len(dataset)


def test_stored_arrays_are_those_of_the_columns(rich):
    (path,) = (rich / "parquet" / "train").glob("*.parquet")
    rows = pq.read_table(path).to_pylist()
    batch = TokenDataset(str(rich)).batch(range(len(rows)))
    for name in ("this_latent", "flip_targets", "flip_bits", "decoded_prev_bits"):
        assert batch[name].numpy().tobytes() == b"".join(row[name] for row in rows), name


def test_samples_hold_the_same_as_batches(rich):
    dataset = TokenDataset(str(rich))
    for batch in DataLoader(dataset, 5, collate_fn=collate):
        check(batch, dataset)
        names = zip(batch["clip_id"], batch["start_frame"].tolist(), strict=True)
        whole = dataset.batch([dataset.find(clip_id, start) for clip_id, start in names])
        assert set(whole) == set(batch)
        assert torch.equal(whole["this_latent"], batch["this_latent"])
        assert torch.equal(whole["flip_bits"], batch["flip_bits"])


def test_samples_of_several_windows_carry_a_clip_s_values_once(rich):
    dataset = TokenDataset(str(rich), windows_per_sample=2)
    batch = dataset.batch(range(len(dataset)))
    assert batch["this_audio"].shape == (len(dataset), 2, WINDOW * SAMPLES_A_FRAME)
    assert batch["flip_bits"].shape == (len(dataset), 2, PAIRS, 8, 1)
    assert len(batch["text"]) == len(batch["clip_id"]) == len(batch["speaker"]) == len(dataset)
    clip = "abc".index(batch["clip_id"][0])
    for place, start in enumerate(batch["start_frame"][0].tolist()):
        assert np.array_equal(batch["this_audio"][0, place].numpy(), heard(clip, start))


def test_heavy_columns_stay_unread_unless_asked_for(rich, monkeypatch):
    dataset = TokenDataset(str(rich), columns=["this_bits", "text"])
    honest, asked = dataset.folder.read_range, []
    monkeypatch.setattr(
        dataset.folder, "read_range", lambda path, start, stop: asked.append(stop - start) or honest(path, start, stop)
    )
    assert set(dataset[0]) == {"this_bits", "text"}
    assert sum(asked) < len(dataset) * WINDOW * SAMPLES_A_FRAME / 2


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory, loader_tools: Any, tiny_codec: Path) -> tuple[Path, list[Any]]:
    """A dataset with carried numbers that some clips lack, and these numbers clip by clip."""
    folder = tmp_path_factory.mktemp("gappy")
    (folder / "motion").mkdir()
    speakers: list[Any] = [None if n == 9 else n for n in range(12)]
    motions = [np.random.default_rng(n).normal(size=(250, 4)).cumsum(0) / 3 for n in range(12)]
    columns = {
        "clip_id": [f"clip{n:02}" for n in range(12)],
        "motion": pa.array([motion.tolist() for motion in motions], pa.list_(pa.list_(pa.float32(), 4))),
        "fps": [25.0] * 12,
        "speaker": pa.array(speakers, pa.int64()),
        "score": pa.array([None if n is None else n / 4 for n in speakers]),
        "is_calm": pa.array([None if n is None else n > 3 for n in speakers]),
        "place": pa.array([None if n is None else [n, 0.5] for n in speakers], pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(columns), folder / "motion" / "clips.parquet")
    carried = "input.carry=[speaker, score, is_calm, place]"
    splits = "export.splits.ratios={train: 1}"
    return loader_tools.tokenize(folder / "motion", folder / "out", tiny_codec, carried, splits), speakers


def test_carried_numbers_that_some_clips_lack_are_lists_in_every_batch(gappy):
    """Row groups with and without missing values stand in one batch, and in batches of their own."""
    output, speakers = gappy
    dataset = TokenDataset(str(output))
    streams = [
        TokenStream(dataset, 100, shuffle=Shuffle(groups=4), ranks=Ranks(even="exact")),
        TokenStream([dataset, dataset], 50, shuffle=Shuffle(groups=1)),
        DataLoader(dataset, 30, collate_fn=collate),
        [dataset[:], TokenDataset(str(output), windows_per_sample=2)[:]],
    ]
    for stream in streams:
        for batch in stream:
            owners = [speakers[int(clip_id[4:])] for clip_id in batch["clip_id"]]
            assert batch["speaker"] == owners
            assert batch["score"] == [None if n is None else n / 4 for n in owners]
            assert batch["is_calm"] == [None if n is None else n > 3 for n in owners]
            assert batch["place"] == [None if n is None else [n, 0.5] for n in owners]


def test_sound_of_windows_that_differ_by_a_sample_goes_into_one_batch(tmp_path, loader_tools, tiny_codec):
    """At rates that are no multiple of the frame rate, mixed, and as samples of several windows."""
    rate_hz, datasets, sounds = 1011, [], {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for n in range(4):
            clip_id, frames = f"{name}{n}", 30 + n
            motion = np.random.default_rng(n).normal(size=(frames, 4)).cumsum(0).astype(np.float32) / 3
            sounds[clip_id] = np.arange(1, frames * rate_hz // 25 + 1, dtype=np.int16)
            np.savez(tmp_path / name / f"{clip_id}.npz", motion=motion, fps=25.0, audio=sounds[clip_id])
        settings = ("input.audio.field=audio", f"input.audio.rate_hz={rate_hz}", "window.stride=3")
        output = tmp_path / f"{name}-out"
        loader_tools.tokenize(tmp_path / name, output, tiny_codec, *settings, "export.splits.ratios={train: 1}")
        datasets.append(TokenDataset(str(output)))
    lengths = set()
    for batch in TokenStream(datasets, 3, ranks=Ranks(even="exact")):
        lengths.add(batch["this_audio"].shape[1])
        for clip_id, start, found in zip(
            batch["clip_id"], batch["start_frame"].tolist(), batch["this_audio"], strict=True
        ):
            first = sounds[clip_id][round(start * rate_hz / 25) :][:202]
            assert found[: len(first)].tolist() == first.tolist()
    assert lengths == {202, 203}
    pairs = TokenDataset(str(output), windows_per_sample=2)
    assert collate([pairs[n] for n in range(len(pairs))])["this_audio"].shape == (len(pairs), 2, 203)


def test_datasets_with_audio_of_other_rates_are_not_mixed(tmp_path, loader_tools, tiny_codec):
    (tmp_path / "motion").mkdir()
    motion = np.random.default_rng(0).normal(size=(30, 4)).cumsum(0).astype(np.float32) / 3
    np.savez(tmp_path / "motion" / "a.npz", motion=motion, fps=25.0, audio=np.ones(30 * 1600 // 25, np.int16))
    urls = []
    for rate_hz in (1600, 1601):
        settings = ("input.audio.field=audio", f"input.audio.rate_hz={rate_hz}", "export.splits.ratios={train: 1}")
        urls.append(str(loader_tools.tokenize(tmp_path / "motion", tmp_path / f"at-{rate_hz}", tiny_codec, *settings)))
    with pytest.raises(ConfigError, match=r"at-1600 has 1,600 Hz, .*at-1601 1,601 Hz .*columns without audio"):
        TokenStream([TokenDataset(url) for url in urls], 4)
    silent = [TokenDataset(url, columns=["this_bits", "start_frame"]) for url in urls]
    assert len(next(iter(TokenStream(silent, 4)))["this_bits"]) == 4
