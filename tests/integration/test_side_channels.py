"""Whole jobs with carried columns, audio and LMDB: what stands in the dataset, for our own and for others' readers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

RATE_HZ = 16_000
FRAME = RATE_HZ // 25
T = 5
LENGTHS = {"anna-0": 27, "anna-1": 15, "bob-0": 31, "cem-0": 20}


def sound_of(name, num_frames, extra=0):
    """Noise as long as the motion, and some samples more."""
    seed = sum(name.encode())
    return np.random.default_rng(seed).integers(-30_000, 30_000, num_frames * FRAME + extra).astype(np.int16)


def flac_bytes(samples, rate_hz=RATE_HZ):
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return sink.getvalue()


@pytest.fixture(scope="module")
def corpus(tools, tmp_path_factory):
    """Four clips with speaker, text, mood and audio in Parquet, tar and npz, and clips with each fault of audio."""
    folder = tmp_path_factory.mktemp("sided")
    sounds = {name: sound_of(name, frames, extra=100) for name, frames in LENGTHS.items()}
    motion = {name: tools.tiny_motion(index, frames) for index, (name, frames) in enumerate(LENGTHS.items())}
    names = ["anna-0", "anna-1", "mute", "slow", "long"]
    rows = {
        "clip_id": names,
        "motion": pa.array([motion.get(name, motion["anna-0"]).tolist() for name in names]),
        "fps": [25.0] * len(names),
        "speaker": ["anna", "anna", "x", "x", "x"],
        "take": pa.array([1, None, 3, 4, 5], pa.int16()),
        "mood": pa.array([[0.5, 1.5], None, [], [], []], pa.list_(pa.float32())),
        "voice": [
            {"bytes": flac_bytes(sounds["anna-0"]), "path": "a.flac"},
            {"bytes": None, "path": "sound/anna-1.flac"},
            None,
            {"bytes": flac_bytes(sounds["anna-0"], 8000), "path": None},
            {"bytes": flac_bytes(np.zeros(RATE_HZ * 3, np.int16)), "path": None},
        ],
    }
    pq.write_table(pa.table(rows), folder / "a.parquet")
    (folder / "sound").mkdir()
    (folder / "sound" / "anna-1.flac").write_bytes(flac_bytes(sounds["anna-1"]))
    tools.write_tar(
        folder / "b.tar",
        {
            "k.motion.npy": tools.npy_bytes(motion["bob-0"]),
            "k.voice.flac": flac_bytes(sounds["bob-0"]),
            "k.json": json.dumps({"clip_id": "bob-0", "fps": 25, "speaker": "bob", "mood": [2, 3]}).encode(),
        },
    )
    fields = {"clip_id": "cem-0", "speaker": "cem", "take": 7, "voice": (sounds["cem-0"] / 32768).astype(np.float32)}
    (folder / "c.npz").write_bytes(tools.npz_bytes(motion=motion["cem-0"], fps=25, **fields))
    return folder


SETTINGS = (
    "input.carry=speaker,take,mood",
    "input.audio.field=voice",
    f"input.audio.rate_hz={RATE_HZ}",
    "export.splits.ratios={train: 1.0}",
)


def sets(*settings):
    return [word for setting in settings for word in ("--set", setting)]


@pytest.fixture(scope="module")
def dataset(command, corpus, tiny_codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("sided") / "tokens"
    done = command("tokenize", corpus, output, "-c", tiny_codec, "--local", *sets(*SETTINGS))
    assert done.code == 0, done.text
    return output


def token_rows(output):
    shards = json.loads((output / "dataset.json").read_text())["shards"]["parquet"]
    return [row for shard in shards for row in pq.read_table(output / shard["path"]).to_pylist()]


def wanted_sound(name, start_frame):
    """Samples of prev and this, cut by hand."""
    samples = sound_of(name, LENGTHS[name], extra=100)
    padded = np.concatenate([np.zeros(T * FRAME, np.int16), samples, np.zeros(2 * T * FRAME, np.int16)])
    first = start_frame * FRAME
    return padded[first : first + T * FRAME], padded[first + T * FRAME : first + 2 * T * FRAME]


def test_rows_hold_the_audio_of_their_windows(dataset):
    rows = token_rows(dataset)
    assert {row["clip_id"] for row in rows} == set(LENGTHS)
    for row in rows:
        prev, this = wanted_sound(row["clip_id"], row["start_frame"])
        assert np.array_equal(np.frombuffer(row["prev_audio"], "<i2"), prev), row["clip_id"]
        assert np.array_equal(np.frombuffer(row["this_audio"], "<i2"), this), row["clip_id"]
        assert row["audio_rate_hz"] == RATE_HZ
    assert sum(row["start_frame"] == 0 for row in rows) == len(LENGTHS)


def test_rows_hold_what_their_clips_carry(dataset):
    found = {row["clip_id"]: (row["speaker"], row["take"], row["mood"]) for row in token_rows(dataset)}
    assert found == {
        "anna-0": ("anna", 1, [0.5, 1.5]),
        "anna-1": ("anna", None, None),
        "bob-0": ("bob", None, [2.0, 3.0]),
        "cem-0": ("cem", 7, None),
    }
    (shard,) = dataset.glob("parquet/*/*.parquet")
    schema = pq.read_schema(shard)
    types = {name: str(schema.field(name).type) for name in ("speaker", "take", "mood", "this_audio")}
    assert (types["speaker"], types["take"], types["this_audio"]) == ("string", "int64", "binary")
    assert types["mood"].startswith("list<") and "double" in types["mood"]


def test_bits_are_those_of_a_dataset_without_side_channels(command, corpus, dataset, tiny_codec, tmp_path):
    plain = tmp_path / "plain"
    settings = sets("export.splits.ratios={train: 1.0}", "input.clips.include=" + str(tmp_path / "ids.txt"))
    (tmp_path / "ids.txt").write_text("\n".join(LENGTHS))
    assert command("tokenize", corpus, plain, "-c", tiny_codec, "--local", *settings).code == 0
    bits = [
        {(row["clip_id"], row["start_frame"]): (row["prev_bits"], row["this_bits"]) for row in token_rows(output)}
        for output in (plain, dataset)
    ]
    assert bits[0] == bits[1]


def test_every_fault_of_audio_is_a_named_drop(dataset):
    found = {
        row["clip_id"]: (row["reason"], row["detail"])
        for row in pq.read_table(dataset / "quarantine.parquet").to_pylist()
    }
    assert found == {
        "mute": ("audio_missing", "no audio in 'voice'"),
        "slow": ("audio_rate", "wanted 16000 samples a second, found 8000"),
        "long": ("audio_mismatch", "audio of 3.000 s, motion of 1.080 s: 0.2 s more or less are allowed"),
    }


def test_small_drifts_are_reported(dataset):
    (record,) = dataset.glob("runs/*/run.json")
    assert json.loads(record.read_text())["audio"] == {
        "clips": 4,
        "drifting_clips": 0,
        "largest_drift_s": pytest.approx(100 / RATE_HZ),
    }


def test_verify_finds_it_sound(command, dataset, corpus, tiny_codec):
    assert command("verify", dataset).code == 0
    deep = command("verify", dataset, corpus, "--deep", "5", "-c", tiny_codec)
    assert deep.code == 0, deep.text


def test_readers_of_others_read_carried_and_audio_columns(dataset, tmp_path):
    import datasets
    import duckdb
    import pandas as pd
    import polars as pl

    names = ["clip_id", "start_frame", "speaker", "take", "mood", "this_audio"]
    wanted = {(row["clip_id"], row["start_frame"]): [row[name] for name in names[2:]] for row in token_rows(dataset)}
    files = f"{dataset}/parquet/train/*.parquet"

    def as_plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        return None if value is None or value != value else value

    streamed = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    found = {
        "datasets": [[row[name] for name in names] for row in streamed],
        "pandas": pd.concat(pd.read_parquet(path) for path in dataset.glob("parquet/*/*.parquet"))[
            names
        ].values.tolist(),
        "duckdb": duckdb.sql(f"SELECT {', '.join(names)} FROM '{files}'").fetchall(),
        "polars": [list(row) for row in pl.read_parquet(files).select(names).iter_rows()],
    }
    for reader, rows in found.items():
        read = {(row[0], row[1]): [as_plain(value) for value in row[2:]] for row in rows}
        assert read == wanted, reader
    by_speaker = duckdb.sql(f"SELECT speaker, count(*) FROM '{files}' GROUP BY 1 ORDER BY 1").fetchall()
    assert by_speaker == [("anna", 9), ("bob", 7), ("cem", 4)]


def test_webdataset_holds_the_same_audio(dataset):
    import webdataset as wds

    folder = dataset / "webdataset" / "train"
    urls = [str(folder / name) for name in (folder / "shards.txt").read_text().split()]
    rows = {(row["clip_id"], row["start_frame"]): row for row in token_rows(dataset)}
    count = 0
    for sample in wds.WebDataset(urls, shardshuffle=False).decode():
        row = rows[sample["json"]["clip_id"], sample["json"]["start_frame"]]
        assert sample["this_audio.npy"].dtype == np.int16
        assert sample["this_audio.npy"].tobytes() == row["this_audio"]
        assert sample["prev_audio.npy"].tobytes() == row["prev_audio"]
        assert sample["json"]["speaker"] == row["speaker"]
        assert sample["json"]["mood"] == row["mood"]
        count += 1
    assert count == len(rows)


def test_flac_holds_the_same_samples(command, corpus, dataset, tiny_codec, tmp_path):
    output = tmp_path / "flac"
    settings = sets(*SETTINGS, "input.audio.encoding=flac")
    assert command("tokenize", corpus, output, "-c", tiny_codec, "--local", *settings).code == 0
    assert command("verify", output).code == 0
    wanted = {(row["clip_id"], row["start_frame"]): row for row in token_rows(dataset)}
    for row in token_rows(output):
        for half in ("prev_audio", "this_audio"):
            samples, rate_hz = soundfile.read(io.BytesIO(row[half]), dtype="int16")
            assert samples.tobytes() == wanted[row["clip_id"], row["start_frame"]][half]
            assert rate_hz == RATE_HZ


def test_referenced_audio_says_where_it_stands(command, corpus, tiny_codec, tmp_path):
    output = tmp_path / "referenced"
    (tmp_path / "ids.txt").write_text("anna-1\nmute\n")
    settings = sets(*SETTINGS, "input.audio.mode=reference")
    done = command("tokenize", corpus, output, "-c", tiny_codec, "--local", "--clips", tmp_path / "ids.txt", *settings)
    assert done.code == 0, done.text
    assert command("verify", output).code == 0
    rows = token_rows(output)
    assert [row["clip_id"] for row in rows] == ["anna-1"] * 3
    for row in rows:
        path = corpus / row["audio_path"]
        samples, _ = soundfile.read(path, dtype="int16", start=row["audio_start"], frames=row["audio_num_samples"])
        assert np.array_equal(samples, wanted_sound("anna-1", row["start_frame"])[1])


def test_bytes_do_not_depend_on_ray_or_place(command, corpus, dataset, tiny_codec, tmp_path, tools, ray_local, s3):
    output = tmp_path / "tokens"
    assert command("tokenize", corpus, output, "-c", tiny_codec, *sets(*SETTINGS)).code == 0
    assert tools.tree_of(output) == tools.tree_of(dataset)


def test_bad_sound_gives_the_same_bytes_in_every_run(command, tools, tiny_codec, tmp_path):
    (tmp_path / "in").mkdir()
    for name, sound in (("a", sound_of("a", 20)), ("b", np.frombuffer(b"no sound", np.uint8))):
        voice = np.frombuffer(flac_bytes(sound), np.uint8) if name == "a" else sound
        data = tools.npz_bytes(motion=tools.tiny_motion(1, 20), fps=25, voice=voice)
        (tmp_path / "in" / f"{name}.npz").write_bytes(data)
    for name in ("one", "two"):
        done = command(
            "tokenize", tmp_path / "in", tmp_path / name, "-c", tiny_codec, "--local", *sets("input.audio.field=voice")
        )
        assert done.code == 0, done.text
    assert tools.tree_of(tmp_path / "one") == tools.tree_of(tmp_path / "two")
    (dropped,) = pq.read_table(tmp_path / "one" / "quarantine.parquet").to_pylist()
    assert dropped["detail"] == "audio: no wav or flac: Format not recognised."


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("input.carry=speker", "did you mean 'speaker'?"),
        ("input.audio.field=vioce", "did you mean 'voice'?"),
        ("input.carry=voice", "leave it out"),
        ("input.carry=clip_id", "rename it"),
        ("input.carry=take:int32", "there are string, bool, int64"),
    ],
)
def test_fields_that_are_not_there_are_refused_before_any_work(command, corpus, tiny_codec, tmp_path, setting, words):
    done = command("tokenize", corpus, tmp_path / "tokens", "-c", tiny_codec, "--local", *sets(setting))
    assert (done.code, words in done.text) == (2, True), done.text
    assert not (tmp_path / "tokens").exists()


def test_a_typed_field_keeps_values_that_come_late(command, tools, tiny_codec, tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(12):
        score = [None] if n < 11 else [0.5]
        rows = {"clip_id": [f"c{n:02}"], "motion": [tools.tiny_motion(n, 9).tolist()], "fps": [25.0]}
        column = pa.array(score, pa.null() if n < 11 else pa.float64())
        pq.write_table(pa.table({**rows, "score": column}), tmp_path / "in" / f"{n:02}.parquet")
    plain, typed = tmp_path / "plain", tmp_path / "typed"
    for output, carry in ((plain, "score"), (typed, "score:float64")):
        done = command("tokenize", tmp_path / "in", output, "-c", tiny_codec, "--local", *sets(f"input.carry={carry}"))
        assert done.code == 0, done.text
    (dropped,) = pq.read_table(plain / "quarantine.parquet").to_pylist()
    assert "wanted string, found float '0.5'; input.carry=score:float64 would keep it" in dropped["detail"]
    assert not pq.read_table(typed / "quarantine.parquet").num_rows
    shards = [pq.read_table(shard) for shard in typed.glob("parquet/*/*.parquet")]
    assert {score for shard in shards for score in shard["score"].to_pylist()} == {None, 0.5}


def test_clips_of_equal_motion_and_other_audio_are_told_apart(command, tools, tiny_codec, tmp_path):
    (tmp_path / "in").mkdir()
    motion = tools.tiny_motion(1, 20)
    fields = {"motion": motion, "fps": 25, "clip_id": "twice"}
    for name, sound in (("a", "one"), ("b", "other"), ("c", "one")):
        data = tools.npz_bytes(**fields, voice=sound_of(sound, 20))
        (tmp_path / "in" / f"{name}.npz").write_bytes(data)
    (tmp_path / "in" / "d.npz").write_bytes(
        tools.npz_bytes(motion=motion, fps=25, clip_id="once", voice=sound_of("d", 20))
    )
    audio = ("input.audio.field=voice", f"input.audio.rate_hz={RATE_HZ}")
    counts = {}
    for name, settings in {"with": audio, "without": (), "suffix": (*audio, "input.duplicate_ids=suffix")}.items():
        done = command("tokenize", tmp_path / "in", tmp_path / name, "-c", tiny_codec, "--local", *sets(*settings))
        assert done.code == 0, done.text
        dropped = pq.read_table(tmp_path / name / "quarantine.parquet").to_pylist()
        counts[name] = sorted((row["source"], row["detail"].partition(" in ")[0]) for row in dropped)
    same, other = "same id and motion with audio as", "same id, other motion with audio"
    assert counts["with"] == [("a.npz", other), ("b.npz", other), ("c.npz", same)]
    assert counts["without"] == [("b.npz", "same id and motion as"), ("c.npz", "same id and motion as")]
    assert counts["suffix"] == [("c.npz", same)]


def test_resampled_motion_stays_with_its_audio(command, tools, tiny_codec, tmp_path):
    """At 50 frames a second, frame 2 n of the motion is frame n of the codec: sample 640 n either way."""
    (tmp_path / "motion").mkdir()
    samples = sound_of("anna-0", 27)
    data = tools.npz_bytes(motion=tools.tiny_motion(5, 54), fps=50, voice=samples)
    (tmp_path / "motion" / "anna-0.npz").write_bytes(data)
    output = tmp_path / "tokens"
    settings = sets("input.audio=voice", f"input.audio.rate_hz={RATE_HZ}", "input.resample=linear")[2:]
    settings += sets("input.audio.field=voice")
    done = command("tokenize", tmp_path / "motion", output, "-c", tiny_codec, "--local", *settings)
    assert done.code == 0, done.text
    rows = token_rows(output)
    assert len(rows) == 6
    for row in rows:
        first = row["start_frame"] * FRAME
        wanted = np.zeros(T * FRAME, np.int16)
        wanted[: len(samples[first : first + T * FRAME])] = samples[first : first + T * FRAME]
        assert np.array_equal(np.frombuffer(row["this_audio"], "<i2"), wanted)


@pytest.fixture(scope="module")
def codec_108(tmp_path_factory):
    from bitwise_vae import BitwiseVAEConfig, random_checkpoint, write_checkpoint

    config = BitwiseVAEConfig(
        motion_dim=108, code_dim=8, patch_nums=(1, 2, 5), hidden_dim=16, depth=1, num_heads=2, fps=25
    )
    path = tmp_path_factory.mktemp("codec") / "108.safetensors"
    write_checkpoint(random_checkpoint(config, np.zeros(108), np.ones(108), 0), path)
    return path


@pytest.fixture(scope="module")
def later_set(tools, tmp_path_factory):
    """The later training code's set: data_lmdb with 112 columns and 16 kHz audio, and metadata.json with lengths."""
    folder = tmp_path_factory.mktemp("later")
    clips = {}
    for index in range(6):
        frames = 20 + 3 * index
        clips[f"take/{index:03}"] = {
            "motioncode": tools.tiny_motion(index, frames, dims=112).astype(np.float16),
            "shapecode": np.zeros((1, 300), np.float32),
            "audio": (np.random.default_rng(index).uniform(-1, 1, frames * FRAME)).astype(np.float32),
        }
    with lmdb.open(str(folder / "data_lmdb"), map_size=1 << 30) as environment, environment.begin(write=True) as write:
        for key, arrays in clips.items():
            write.put(key.encode(), tools.npz_bytes(**arrays))
        write.put(b"zz", b"no archive")
    listed = [[key, len(arrays["motioncode"])] for key, arrays in clips.items()]
    metadata = {"train": listed[:3], "test": listed[3:], "val": listed[4:5]}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder, clips


@pytest.fixture(scope="module")
def later_tokens(command, later_set, codec_108, tmp_path_factory):
    folder, _ = later_set
    output = tmp_path_factory.mktemp("later") / "tokens"
    settings = sets(
        "input.fps=25",
        "input.columns=0:104,106:108,109:111",
        "input.audio.field=audio",
        f"input.audio.rate_hz={RATE_HZ}",
        "units.bytes=30000",
        "export.splits.by=file",
        f"export.splits.file={folder / 'metadata.json'}",
    )
    done = command("tokenize", folder / "data_lmdb", output, "-c", codec_108, "--local", *settings)
    assert done.code == 0, done.text
    return output


def test_the_later_training_set_becomes_rows_with_right_bits_and_audio(command, later_set, later_tokens, codec_108):
    import torch

    from bitwise_vae import load_checkpoint, pack_bits

    (_, clips), output = later_set, later_tokens
    assert command("verify", output).code == 0
    manifest = json.loads((output / "dataset.json").read_text())
    assert manifest["counts"]["units"] > 2
    assert manifest["drops"] == {"unreadable": 1}
    assert {name: split["clips"] for name, split in manifest["splits"].items()} == {"train": 3, "test": 2, "val": 1}
    rows = token_rows(output)
    assert {row["clip_id"] for row in rows} == {f"data#{key}" for key in clips}
    model = load_checkpoint(codec_108)
    columns = [*range(104), 106, 107, 109, 110]
    for row in rows:
        arrays = clips[row["clip_id"].removeprefix("data#")]
        start = row["start_frame"]
        motion = np.concatenate([np.zeros((T, 108), np.float32), arrays["motioncode"][:, columns].astype(np.float32)])
        halves = [torch.from_numpy(motion[start + shift : start + shift + T])[None] for shift in (0, T)]
        with torch.no_grad():
            prev, this = model.quant_to_vqidx(*halves)
        assert row["prev_bits"] == pack_bits(prev[0].numpy()).tobytes()
        assert row["this_bits"] == pack_bits(this[0].numpy()).tobytes()
        sound = np.rint(arrays["audio"].astype(np.float64) * 32768).clip(-32768, 32767).astype(np.int16)
        assert np.array_equal(np.frombuffer(row["this_audio"], "<i2"), sound[start * FRAME : (start + T) * FRAME])


def test_the_later_training_set_goes_through_to_training_batches(later_set, later_tokens):
    from torch.utils.data import DataLoader

    from pipeline.loader import TokenDataset, TokenFeatures, collate

    _, clips = later_set
    tokens = TokenDataset(str(later_tokens), "train")
    features = TokenFeatures.of_codec(tokens.codec)
    count = 0
    for batch in DataLoader(tokens, batch_size=4, collate_fn=collate):
        for row, clip_id in enumerate(batch["clip_id"]):
            first = int(batch["start_frame"][row]) * FRAME
            sound = np.rint(clips[clip_id.removeprefix("data#")]["audio"].astype(np.float64) * 32768)
            wanted = sound.clip(-32768, 32767)[first : first + T * FRAME]
            assert np.array_equal(batch["this_audio"][row].numpy(), wanted)
        bits = features.unpack(batch["this_bits"])
        assert bits.shape == (len(batch["clip_id"]), 8, 8)
        assert features.next_scale_features(bits).shape == (len(batch["clip_id"]), 7, 8)
        count += len(batch["clip_id"])
    assert count == len(tokens) == sum(-(-len(clips[f"take/{index:03}"]["motioncode"]) // T) for index in range(3))


def test_lmdb_is_continued_unit_by_unit_and_sees_a_changed_file(command, later_set, codec_108, tmp_path):
    folder, _ = later_set
    copy = tmp_path / "data_lmdb"
    with lmdb.open(str(folder / "data_lmdb"), readonly=True, lock=False) as environment:
        copy.mkdir()
        environment.copy(str(copy))
    output = tmp_path / "tokens"
    words = ("tokenize", copy, output, "-c", codec_108, "--local")
    settings = sets("input.fps=25", "input.columns=0:104,106:108,109:111")
    assert command(*words, *settings).code == 0
    assert "already complete" in command(*words, *settings).text
    with lmdb.open(str(copy), map_size=1 << 30) as environment, environment.begin(write=True) as write:
        assert write.delete(b"take/000")
    assert command(*words, *settings).code == 0
    assert "data#take/000" not in {row["clip_id"] for row in token_rows(output)}
    assert len({row["clip_id"] for row in token_rows(output)}) == 5


def test_a_damaged_lmdb_is_a_named_drop_and_stops_nothing_else(
    command, later_set, codec_108, tmp_path, tools, ray_local
):
    """A page of the tree is overwritten: planning and reading follow it, in the driver and in workers."""
    folder, clips = later_set
    whole = (folder / "data_lmdb" / "data.mdb").read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.lmdb").write_bytes(whole)
    leaves = [page for page in range(2, len(whole) // 4096) if whole[page * 4096 + 10] == 2]
    damaged = bytearray(whole)
    for page in leaves:
        damaged[page * 4096 + 10 : (page + 1) * 4096] = bytes(4096 - 10)
    (tmp_path / "in" / "bad.lmdb").write_bytes(damaged)
    settings = sets("input.fps=25", "input.columns=0:104,106:108,109:111", "units.bytes=30000")
    for name, options in (("local", ["--local"]), ("ray", [])):
        done = command("tokenize", tmp_path / "in", tmp_path / name, "-c", codec_108, *options, *settings)
        assert done.code == 0, done.text
        assert command("verify", tmp_path / name).code == 0
    assert tools.tree_of(tmp_path / "local") == tools.tree_of(tmp_path / "ray")
    assert {row["clip_id"] for row in token_rows(tmp_path / "ray")} == {f"good#{key}" for key in clips}
    dropped = pq.read_table(tmp_path / "ray" / "quarantine.parquet").to_pylist()
    assert {(row["source"], row["clip_id"]) for row in dropped} == {("bad.lmdb", "bad"), ("good.lmdb", "good#zz")}
    (bad,) = [row for row in dropped if row["source"] == "bad.lmdb"]
    assert (bad["reason"], "restore it" in bad["detail"], "page" in bad["detail"]) == ("unreadable", True, True)


def test_inspect_looks_into_lmdb(command, later_set):
    folder, _ = later_set
    done = command("inspect", Path(folder) / "data_lmdb" / "data.mdb")
    assert done.code == 0, done.text
    assert "motioncode" in done.text
