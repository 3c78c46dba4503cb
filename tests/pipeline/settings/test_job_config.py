from __future__ import annotations

import pytest

from pipeline.contract.resolve import corpus_spec, export_spec
from pipeline.contract.specs import TokenSpec
from pipeline.errors import ConfigError
from pipeline.settings.job_config import load_config, parse_columns


def test_load_config_lays_assignments_over_the_file():
    config = load_config("window: {stride: 50, tail: pad}\n", ["window.stride=25", "input.fps=30"])
    assert (config.window.stride, config.window.tail, config.input.fps) == (25, "pad", 30.0)


def test_load_config_reads_a_field_name_for_fps():
    assert load_config("input: {fps: mocap_frame_rate}").input.fps == "mocap_frame_rate"


@pytest.mark.parametrize(
    ("text", "assignments", "expected"),
    [
        (None, ["window.strid=5"], "did you mean 'window.stride'"),
        (None, ["stride=5"], "did you mean 'window.stride'"),
        ("precison: float16", [], "did you mean 'precision'"),
        ("window: {stride: 0}", [], "window.stride"),
        ("window: 3", [], "window"),
        (None, ["window"], "key=value"),
        (None, ["precision.x=3"], "precision"),
        ("a: [", [], "not YAML"),
        ("- 1", [], "keys and values"),
        (None, ["input.columns=5:2"], "empty"),
        (None, ["input.columns=a"], "numbers and ranges"),
        (None, ["export.splits.ratios={train: 0.5}"], "sum to 1"),
        (None, ["export.splits.by="], "export.splits.by"),
        (None, ['export.where="speaker = 3"'], "export.where.*as in Python"),
        (None, ["export.formats=lance"], "parquet"),
        ("x: !!python/object/apply:os.system ['true']", [], "not YAML"),
    ],
)
def test_load_config_refuses_with_the_next_step(text, assignments, expected):
    with pytest.raises(ConfigError, match="(?s).*" + expected):
        load_config(text, assignments)


@pytest.mark.parametrize(("value", "expected"), [("0:52", "0:52"), ("5", "5"), ("[1, 3]", "1,3"), ("0:3,7", "0:3,7")])
def test_load_config_reads_columns_as_text(value, expected):
    assert load_config(None, [f"input.columns={value}"]).input.columns == expected
    assert load_config(f"input:\n  columns: {value}\n").input.columns == expected


@pytest.mark.parametrize(("value", "expected"), [("29.97", 29.97), ("3e1", 30.0), ("25", 25.0), ("-.5e1", -5.0)])
def test_load_config_reads_numbers(value, expected):
    assert load_config(None, [f"input.fps={value}"]).input.fps == expected


def test_parse_columns_expands_ranges():
    assert parse_columns("0:3,7, 9:11") == (0, 1, 2, 7, 9, 10)


def test_training_preset_means_stride_50_and_one_phase(make_codec):
    config = load_config("window: {preset: training}")
    window = corpus_spec(config, make_codec(patch_nums=(1, 5, 25, 50, 100)), batch_size=1).window
    assert (window.stride, window.phases, window.tail) == (50, 1, "shift")


def test_specs_change_their_id_with_what_changes_bytes(make_codec):
    codec = make_codec()

    def ids(*assignments):
        config = load_config(None, assignments)
        corpus = corpus_spec(config, codec, batch_size=32)
        return corpus, export_spec(config, TokenSpec(codec=codec, corpus=corpus)).export_id

    corpus, exported = ids()
    assert ids("window.stride=3")[0] != corpus
    assert ids("window.stride=3")[1] == exported
    assert ids("export.windows_per_shard=5")[0] == corpus
    assert ids("export.windows_per_shard=5")[1] != exported
    assert ids("run.workers=3", "run.local=true") == (corpus, exported)
    pool = ("run.workers=3", "run.min_workers=2", "run.gpus_per_worker=0.5", "run.address=auto")
    assert ids(*pool) == (corpus, exported)
    assert ids("export.formats=webdataset,parquet")[1] == ids("export.formats=parquet,webdataset")[1]


@pytest.mark.parametrize(
    "assignments",
    [
        ("input.audio=voice", "input.audio.rate_hz=16000"),
        ("input.audio.rate_hz=16000", "input.audio=voice"),
        ("input.audio.field=voice", "input.audio.rate_hz=16000"),
    ],
)
def test_load_config_takes_a_section_by_its_name_and_by_its_keys(assignments):
    audio = load_config(None, assignments).input.audio
    assert (audio.field, audio.rate_hz) == ("voice", 16_000)
    audio = load_config("input: {audio: voice}", ["input.audio.rate_hz=16000"]).input.audio
    assert (audio.field, audio.rate_hz) == ("voice", 16_000)
    clips = load_config(None, ["export.clips=a.txt", "export.clips.exclude=b.txt"]).export.clips
    assert (clips.include, clips.exclude) == ("a.txt", "b.txt")


def test_load_config_refuses_audio_without_its_field():
    for assignment in ("input.audio.rate_hz=16000", "input.audio.mode=reference"):
        with pytest.raises(ConfigError, match=r"input\.audio\.field=FIELD"):
            load_config(None, [assignment])


@pytest.mark.parametrize(
    ("settings", "num_gpus", "num_workers"),
    [
        ([], 0, 1),
        ([], 3, 3),
        (["run.gpus_per_worker=0.5"], 3, 6),
        (["run.gpus_per_worker=0.4"], 3, 6),
        (["run.gpus_per_worker=0.1"], 1, 10),
        (["run.gpus_per_worker=2"], 5, 2),
        (["run.min_workers=2"], 0, 2),
        (["run.workers=4", "run.min_workers=2"], 1, 4),
    ],
)
def test_workers_on_fills_the_gpus(settings, num_gpus, num_workers):
    assert load_config(None, settings).run.workers_on(num_gpus) == num_workers


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["run.workers=2", "run.min_workers=3"], "at most as many as workers, 2"),
        (["run.gpus_per_worker=1.5"], "whole ones"),
        (["run.local=true", "run.address=auto"], "without Ray"),
    ],
)
def test_load_config_refuses_what_cannot_be_run(settings, said):
    secret = ["run.storage_options={secret: hidden}"]
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(None, secret + settings)
    assert "hidden" not in str(caught.value)
