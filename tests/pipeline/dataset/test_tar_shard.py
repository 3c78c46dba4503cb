from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from pipeline.contract.columns import array_columns, token_schema
from pipeline.contract.specs import AudioRule, CarriedColumn, FlipRule
from pipeline.dataset.tar_shard import (
    sample_key,
    shard_to_tar,
    table_of_tar,
    window_bytes,
)
from pipeline.errors import VerifyError


@pytest.mark.parametrize("clip_id", ["a", "../../x", "/etc/passwd", "Ünïcode 動き", "a.b.c", "x" * 900, "\\", "a\tb"])
def test_sample_key_is_safe(clip_id):
    key = sample_key(clip_id, 100)
    assert key.endswith("-00000100")
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in key)
    assert len(f"{key}.prev.npy") <= 100


def test_sample_key_tells_clips_apart():
    ids = ["a/b", "a_b", "a.b", "x" * 70, "x" * 71]
    assert len({sample_key(clip_id, 0) for clip_id in ids}) == len(ids)


def tokens(num_rows, schema):
    rows = [
        {
            "clip_id": f"clip/{n}",
            "start_frame": 5 * n,
            "num_frames": 50,
            "prev_valid_frames": 5,
            "this_valid_frames": 5,
            "source": "a.npz",
            "prev_bits": bytes([n] * 8),
            "this_bits": bytes([n + 1] * 8),
        }
        for n in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def test_shard_to_tar_round_trips(make_codec):
    table = tokens(5, token_schema(make_codec()))
    assert table_of_tar(shard_to_tar(table, make_codec()), make_codec(), None, "s").equals(table)


def test_shard_to_tar_holds_no_clock_or_owner(make_codec):
    data = shard_to_tar(tokens(3, token_schema(make_codec())), make_codec())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert len(data) % 512 == 0


def test_a_window_of_the_full_codec_takes_4096_bytes(make_codec):
    codec = make_codec(patch_nums=(1, 5, 25, 50, 100), code_dim=32)
    small = tokens(1, token_schema(make_codec()))
    row = {**small.to_pylist()[0], "prev_bits": bytes(724), "this_bits": bytes(724)}
    data = shard_to_tar(pa.Table.from_pylist([row], schema=token_schema(codec)), codec)
    assert len(data) == 4096 + 1024
    assert window_bytes(codec) == 4096
    assert window_bytes(make_codec()) == len(shard_to_tar(small, make_codec())) - 1024


def test_table_of_tar_finds_torn_samples(make_codec):
    data = shard_to_tar(tokens(2, token_schema(make_codec())), make_codec())
    with pytest.raises(VerifyError, match="together"):
        table_of_tar(data[:1024] + data[2048:], make_codec(), None, "s")
    with pytest.raises(VerifyError, match="shape"):
        table_of_tar(data, make_codec(code_dim=16), None, "s")


@pytest.fixture
def rich_corpus(make_corpus):
    return make_corpus(
        emit=("latent", "flips", "decoded_prev"),
        flips=FlipRule(pairs=2, ratio=0.3, seed=0),
        carry=(CarriedColumn(name="speaker", kind="string"), CarriedColumn(name="mood", kind="list<float64>")),
        audio=AudioRule(field="wav", rate_hz=None, mode="cut", encoding="int16", tolerance_s=0),
    )


def rich_tokens(codec, corpus):
    rows = []
    for row in tokens(3, token_schema(codec)).to_pylist():
        n = row["start_frame"] // 5
        arrays = {array.name: bytes([n]) * array.num_bytes for array in array_columns(codec, corpus)}
        sound = {"prev_audio": b"\0\1" * n, "this_audio": bytes([n, 7]) * 40, "audio_rate_hz": 16_000}
        rows.append({**row, **arrays, **sound, "speaker": [None, "anna", "é"][n], "mood": [[0.1, None], None, []][n]})
    return pa.Table.from_pylist(rows, schema=token_schema(codec, corpus))


def test_shard_to_tar_round_trips_additional_columns(make_codec, rich_corpus):
    codec = make_codec()
    table = rich_tokens(codec, rich_corpus)
    data = shard_to_tar(table, codec, rich_corpus)
    assert table_of_tar(data, codec, rich_corpus, "s").equals(table)
    bits = ["clip_id", "start_frame", "num_frames", "prev_valid_frames", "this_valid_frames", "source"]
    wanted = table.select([*bits, "prev_bits", "this_bits"])
    assert table_of_tar(data, codec, None, "s").equals(wanted)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = [member.name.partition(".")[2] for member in tar][:9]
        members = tar.getmembers()
        latent, flips, sound = (np.load(io.BytesIO(tar.extractfile(members[n]).read())) for n in (2, 12, 16))
    assert names == [
        "prev.npy",
        "this.npy",
        "latent.npy",
        "flip_targets.npy",
        "flip_bits.npy",
        "decoded_prev.npy",
        "prev_audio.npy",
        "this_audio.npy",
        "json",
    ]
    assert (latent.dtype, latent.shape) == (np.float16, (5, 8))
    assert (flips.dtype, flips.shape) == (np.uint8, (2, 8, 1))
    assert (sound.dtype, sound.tolist()) == (np.int16, [1 + 7 * 256] * 40)


def test_table_of_tar_finds_members_that_are_missing_or_too_many(make_codec, rich_corpus):
    codec = make_codec()
    data = shard_to_tar(rich_tokens(codec, rich_corpus), codec, rich_corpus)
    less = rich_corpus.model_copy(update={"emit": ("latent",), "flips": None})
    with pytest.raises(VerifyError, match=r"wanted members .*latent.*, found .*flip_bits"):
        table_of_tar(data, codec, less, "s")
    plain = shard_to_tar(tokens(2, token_schema(codec)), codec)
    with pytest.raises(VerifyError, match="together"):
        table_of_tar(plain, codec, rich_corpus, "s")
    more = rich_corpus.model_copy(update={"flips": FlipRule(pairs=3, ratio=0.3, seed=0)})
    with pytest.raises(VerifyError, match="shape"):
        table_of_tar(data, codec, more, "s")


def test_window_bytes_counts_additional_arrays(make_codec, make_corpus):
    codec = make_codec(patch_nums=(1, 5, 25, 50, 100), code_dim=32)
    assert window_bytes(codec, make_corpus()) == 4096
    assert window_bytes(codec, make_corpus(emit=("latent",))) == 4096 + 512 + 6656


def test_table_of_tar_finds_a_json_without_fields(make_codec):
    data = shard_to_tar(tokens(1, token_schema(make_codec())), make_codec())
    begin = data.index(b'{"clip_id"')
    end = data.index(b"}", begin) + 1
    with pytest.raises(VerifyError, match="holds no fields, found list"):
        table_of_tar(data[:begin] + b"[".ljust(end - begin - 1) + b"]" + data[end:], make_codec(), None, "s")


def mended(data):
    """The same tar with checksums that fit its headers."""
    blocks, offset = bytearray(data), 0
    while blocks[offset]:
        header = blocks[offset : offset + 512]
        header[148:156] = b" " * 8
        blocks[offset + 148 : offset + 156] = b"%06o\0 " % sum(header)
        offset += 512 + -(-int(header[124:135], 8) // 512) * 512
    return bytes(blocks)
