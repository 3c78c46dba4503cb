from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pytest

from pipeline.errors import VerifyError
from pipeline.export.webdataset import rows_of_tar, sample_key, shard_to_tar, window_bytes
from pipeline.schema import token_schema


@pytest.mark.parametrize("clip_id", ["a", "../../x", "/etc/passwd", "Ünïcode 動き", "a.b.c", "x" * 900, "\\", "a\tb"])
def test_sample_key_is_safe(clip_id):
    key = sample_key(clip_id, 100)
    assert key.endswith("-00000100")
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in key)
    assert len(f"{key}.prev.npy") <= 100


def test_sample_key_tells_clips_apart():
    ids = ["a/b", "a_b", "a.b", "x" * 70, "x" * 71]
    assert len({sample_key(clip_id, 0) for clip_id in ids}) == len(ids)


def tokens(num_rows):
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
    return pa.Table.from_pylist(rows, schema=token_schema(8))


def test_shard_to_tar_round_trips(make_codec):
    table = tokens(5)
    data = shard_to_tar(table, make_codec())
    rows = [{**row, "prev_bits": prev, "this_bits": this} for row, prev, this in rows_of_tar(data, make_codec(), "s")]
    assert pa.Table.from_pylist(rows, schema=table.schema).equals(table)


def test_shard_to_tar_holds_no_clock_or_owner(make_codec):
    with tarfile.open(fileobj=io.BytesIO(shard_to_tar(tokens(3), make_codec()))) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert len(shard_to_tar(tokens(3), make_codec())) % 512 == 0


def test_a_window_of_the_full_codec_takes_4096_bytes(make_codec):
    codec = make_codec(patch_nums=(1, 5, 25, 50, 100), code_dim=32)
    row = {**tokens(1).to_pylist()[0], "prev_bits": bytes(724), "this_bits": bytes(724)}
    data = shard_to_tar(pa.Table.from_pylist([row], schema=token_schema(724)), codec)
    assert len(data) == 4096 + 1024
    assert window_bytes(codec) == 4096
    assert window_bytes(make_codec()) == len(shard_to_tar(tokens(1), make_codec())) - 1024


def test_rows_of_tar_finds_torn_samples(make_codec):
    data = shard_to_tar(tokens(2), make_codec())
    with pytest.raises(VerifyError, match="together"):
        list(rows_of_tar(data[:1024] + data[2048:], make_codec(), "s"))
    with pytest.raises(VerifyError, match="shape"):
        list(rows_of_tar(data, make_codec(code_dim=16), "s"))
