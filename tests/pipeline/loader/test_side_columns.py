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

from pipeline.loader import Ranks, Shuffle, TarStream, TokenDataset, TokenStream, collate

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


def test_samples_and_tars_hold_the_same_as_batches(rich):
    dataset = TokenDataset(str(rich))
    for batch in DataLoader(dataset, 5, collate_fn=collate):
        check(batch, dataset)
    for batch in TarStream(str(rich), batch_size=5):
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
