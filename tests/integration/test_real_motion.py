"""Face motion, procedural and recorded, from files to verified shards and back to motion."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bitwise_vae import BitwiseVAEConfig, load_checkpoint, random_checkpoint, unpack_bits, write_checkpoint

FLIP_SHARE = 1e-5


def resampled(motion, fps_in, fps_out):
    """Linear resampling as the contract words it, written down again."""
    num = int((len(motion) - 1) * fps_out // fps_in) + 1
    at = np.arange(num) / fps_out * fps_in
    return np.stack([np.interp(at, np.arange(len(motion)), column) for column in motion.T.astype(np.float64)], 1)


def windows_of(motion, starts, frames):
    padded = np.concatenate([np.zeros((frames, motion.shape[1])), motion]).astype(np.float32)
    return torch.from_numpy(np.stack([padded[start : start + 2 * frames] for start in starts]))


def write_codec(path, motion, **changes):
    std = motion.std(axis=0)
    fields = {"motion_dim": motion.shape[1], "hidden_dim": 32, "depth": 1, "num_heads": 4, **changes}
    config = BitwiseVAEConfig(**fields)
    write_checkpoint(random_checkpoint(config, motion.mean(axis=0), np.where(std > 0, std, 1), 0), path)
    return path


@pytest.fixture(scope="session")
def flame(face_motion, tmp_path_factory):
    """A 30 fps take of FLAME motion resampled for a 106-dimensional codec of 25 fps."""
    motion = np.load(next((face_motion / "flame106").glob("*.npz")))["motion"]
    codec = write_codec(tmp_path_factory.mktemp("flame") / "codec.safetensors", motion)
    return face_motion / "flame106", codec, ("--set", "input.resample=linear")


@pytest.fixture(scope="session")
def arkit(face_motion, tmp_path_factory):
    """iPhone takes of 60 fps with constant columns, for a 61-dimensional codec of 60 fps."""
    takes = [np.load(path)["values"] for path in sorted((face_motion / "arkit_iphone").glob("*.npz"))]
    motion = np.concatenate(takes)
    assert (motion.std(axis=0) == 0).any() or any((take.std(axis=0) == 0).any() for take in takes)
    codec = write_codec(tmp_path_factory.mktemp("arkit") / "codec.safetensors", motion, fps=60.0)
    return face_motion / "arkit_iphone", codec, ("--set", "input.motion_field=values")


def rows_of(output):
    return [row for path in sorted(output.glob("parquet/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def check_bits(rows, clips, codec_path):
    """Bits equal those of the model's own operation, and decode to the same motion."""
    model = load_checkpoint(codec_path)
    frames, code_dim = model.config.window_frames, model.config.code_dim
    differing = total = 0
    for clip_id, motion in clips.items():
        mine = sorted((row for row in rows if row["clip_id"] == clip_id), key=lambda row: row["start_frame"])
        starts = [row["start_frame"] for row in mine]
        last = len(motion) - frames
        assert starts == sorted({*range(0, last + 1, frames), last})
        assert {row["num_frames"] for row in mine} == {len(motion)}
        packed = np.stack(
            [
                np.stack([np.frombuffer(row[name], np.uint8).reshape(-1, code_dim // 8) for row in mine])
                for name in ("prev_bits", "this_bits")
            ]
        )
        found = torch.from_numpy(unpack_bits(packed).astype(np.int32))
        windows = windows_of(motion, starts, frames)
        with torch.no_grad():
            wanted = model.quant_to_vqidx(windows[:, :frames], windows[:, frames:])
            decoded = model.vqidx_to_motion(found[0], found[1])
            reference = model.vqidx_to_motion(*wanted)
        differing += sum(int((a != b).sum()) for a, b in zip(found, wanted, strict=True))
        total += found.numel()
        for mine_motion, other in zip(decoded, reference, strict=True):
            assert mine_motion.shape == (len(starts), frames, motion.shape[1])
            assert torch.isfinite(mine_motion).all()
            assert (mine_motion - other).abs().mean() < 1e-3 * other.std()
    assert differing <= FLIP_SHARE * total


def test_flame_take_reaches_verified_shards_and_decodes(command, flame, tmp_path):
    source, codec, settings = flame
    outcome = command("tokenize", source, tmp_path / "o", "-c", codec, *settings, "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    path = next(source.glob("*.npz"))
    motion = resampled(np.load(path)["motion"], 30, 25)
    assert len(motion) == (1906 - 1) * 25 // 30 + 1  # as long in both
    check_bits(rows_of(tmp_path / "o"), {path.stem: motion}, codec)


def test_arkit_takes_reach_verified_shards_and_decode(command, arkit, tmp_path):
    source, codec, settings = arkit
    outcome = command("tokenize", source, tmp_path / "o", "-c", codec, *settings, "--local")
    assert outcome.code == 0, outcome.text
    assert command("verify", tmp_path / "o").code == 0
    clips = {path.stem: np.load(path)["values"] for path in sorted(source.glob("*.npz"))}
    check_bits(rows_of(tmp_path / "o"), clips, codec)
    manifest = json.loads((tmp_path / "o" / "dataset.json").read_text())
    assert manifest["counts"]["clips"] == len(clips) in (3, 11)
    assert manifest["counts"]["frames"] == sum(map(len, clips.values())) in (4894, 20916)
