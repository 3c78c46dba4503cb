from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.contract.columns import clip_schema, side_fields
from pipeline.contract.specs import AudioRule, CarriedColumn, Contract, Numerics
from pipeline.sources.audio import decode_sound
from pipeline.stages.side_columns import audio_account, side_columns

Make = Callable[..., Any]
RATE_HZ, FRAME, T = 1000, 40, 5


@pytest.fixture
def contract(make_codec: Make, make_corpus: Make) -> Make:
    def make(**changes: Any) -> Contract:
        fields = {"field": "audio", "rate_hz": None, "mode": "cut", "encoding": "int16", "tolerance_s": 0.1}
        rule = AudioRule(**{**fields, **changes})
        corpus = make_corpus(carry=(CarriedColumn(name="speaker", kind="string"),), audio=rule)
        numerics = Numerics(device="cpu", torch="", pyarrow="")
        return Contract(codec=make_codec(), corpus=corpus, numerics=numerics)

    return make


def clips_of(contract: Contract, lengths: list[int]) -> tuple[list[np.ndarray], Any]:
    sounds = [np.random.default_rng(n).integers(-9, 9, length).astype("<i2") for n, length in enumerate(lengths)]
    rows = [
        {
            "speaker": f"s{index}",
            "audio": sound.tobytes(),
            "audio_path": f"{index}.wav",
            "audio_rate_hz": RATE_HZ,
            "audio_drift_s": 0.0,
        }
        for index, sound in enumerate(sounds)
    ]
    return sounds, pa.Table.from_pylist(rows, schema=clip_schema(contract.corpus))


CLIP_OF_ROW = np.array([0, 0, 0, 1, 2])
STARTS = np.array([0, 3, 7, 0, 2])


@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 30])
def test_side_columns_cut_every_window(contract: Make, chunk_bytes: int) -> None:
    sounds, clips = clips_of(contract(), [300, 0, 1000])
    columns = side_columns(clips, CLIP_OF_ROW, STARTS, contract(), chunk_bytes)
    fields = side_fields(contract().corpus)
    table = pa.table(columns, schema=pa.schema(fields))
    assert table.column_names == ["speaker", "prev_audio", "this_audio", "audio_rate_hz"]
    assert table["speaker"].to_pylist() == ["s0", "s0", "s0", "s1", "s2"]
    for row, clip, start in zip(table.to_pylist(), CLIP_OF_ROW, STARTS, strict=True):
        padded = np.concatenate([np.zeros(T * FRAME, np.int16), sounds[clip], np.zeros(2 * T * FRAME, np.int16)])
        both = padded[start * FRAME : (start + 2 * T) * FRAME]
        assert np.frombuffer(row["prev_audio"] + row["this_audio"], "<i2").tolist() == both.tolist()


def test_side_columns_of_flac_hold_the_same_samples(contract: Make) -> None:
    _, clips = clips_of(contract(), [300, 0, 1000])
    raw = side_columns(clips, CLIP_OF_ROW, STARTS, contract())
    flac = side_columns(clips, CLIP_OF_ROW, STARTS, contract(encoding="flac"))
    for half in (1, 2):
        for stored, samples in zip(flac[half].to_pylist(), raw[half].to_pylist(), strict=True):
            assert decode_sound(stored).samples.tobytes() == samples


def test_side_columns_of_referenced_audio_are_the_range_of_this(contract: Make) -> None:
    made = contract(mode="reference")
    _, clips = clips_of(made, [300, 0, 1000])
    table = pa.table(side_columns(clips, CLIP_OF_ROW, STARTS, made), schema=pa.schema(side_fields(made.corpus)))
    assert table["audio_path"].to_pylist() == ["0.wav"] * 3 + ["1.wav", "2.wav"]
    assert table["audio_start"].to_pylist() == [0, 120, 280, 0, 80]
    assert set(table["audio_num_samples"].to_pylist()) == {200}


def test_side_columns_without_windows(contract: Make) -> None:
    for made in (contract(), contract(encoding="flac"), contract(mode="reference")):
        _, clips = clips_of(made, [])
        none = np.zeros(0, np.int64)
        table = pa.table(side_columns(clips, none, none, made), schema=pa.schema(side_fields(made.corpus)))
        assert table.num_rows == 0


def test_audio_account_counts_drifts_beyond_a_frame(contract: Make) -> None:
    _, clips = clips_of(contract(), [10, 10, 10, 10])
    at = clips.column_names.index("audio_drift_s")
    drifting = clips.set_column(at, clips.schema.field(at), pa.array([0.0, 0.04, -0.05, 0.09]))
    assert audio_account(drifting, 25.0) == {"clips": 4, "drifting_clips": 2, "largest_drift_s": 0.09}
    assert audio_account(pa.table({}), 25.0) == {}
    assert audio_account(clips.slice(0, 0), 25.0)["largest_drift_s"] == 0
