"""Procedural ARKit motion: deterministic, a face by its own rules, and wide enough for real takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bitwise_vae.config import ARKIT_GROUPS
from jobs.demo.procedural_motion import motion_statistics, speech_motion
from jobs.demo.speaker_timeline import VALUE_STEP
from jobs.demo_codecs.procedural_arkit import ANGLES, ARKIT_CHANNELS, COLUMN, MAX_EYE_RAD, RARE, SHAPES, arkit_motion

PAIRS = [(name, name.removesuffix("Left") + "Right") for name in SHAPES if name.endswith("Left")]


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return [arkit_motion(400, seed) for seed in range(80)]


@pytest.fixture(scope="module")
def takes(recorded_motion: Path) -> dict[str, np.ndarray]:
    """Real takes, every frame of them, (frames, 61) each."""
    found = {}
    for path in sorted((recorded_motion / "arkit_iphone").glob("*.npz")):
        with np.load(path, allow_pickle=False) as content:
            assert tuple(content["channels"].tolist()) == ARKIT_CHANNELS
            found[path.stem] = content["values"].astype(np.float64)
    assert len(found) == 11
    return found


def column(motion: np.ndarray, name: str) -> np.ndarray:
    return motion[:, COLUMN[name]].astype(np.float64)


def test_channels_are_61_and_the_groups_of_a_codec_cover_them() -> None:
    assert (len(SHAPES), len(ANGLES), len(set(ARKIT_CHANNELS))) == (52, 9, 61)
    covered = [index for group in ARKIT_GROUPS for index in range(group.start, group.stop)]
    assert covered == list(range(61))
    assert [ARKIT_CHANNELS[group.start] for group in ARKIT_GROUPS] == ["EyeBlinkLeft", "HeadYaw", "LeftEyeYaw"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**40), st.sampled_from([12.5, 25.0, 30.0, 60.0, 240.0]))
def test_arkit_motion_is_in_range_for_any_seed_length_and_rate(num_frames: int, seed: int, fps: float) -> None:
    motion = arkit_motion(num_frames, seed, fps)
    assert motion.shape == (num_frames, 61)
    assert motion.dtype == np.float32
    assert motion[:, :52].min() >= 0
    assert motion[:, :52].max() <= 1
    assert np.abs(motion[:, 52:55]).max() < 1
    assert np.abs(motion[:, 55:]).max() <= MAX_EYE_RAD
    assert np.array_equal(motion / VALUE_STEP, np.round(motion / VALUE_STEP))


def test_arkit_motion_is_equal_for_equal_arguments_and_differs_between_seeds() -> None:
    first = arkit_motion(200, 5)
    assert first.tobytes() == arkit_motion(200, 5).tobytes()
    assert not np.array_equal(first, arkit_motion(200, 6))


def test_arkit_motion_is_still_what_the_demonstration_codec_was_trained_on() -> None:
    digest = hashlib.sha256(arkit_motion(250, 1_000_000).tobytes()).hexdigest()
    assert digest == "297a8d3adb29cebb192386b820405f09b314f9a5d7fa7f5a8d6659031b3867d6"


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 25.0), (10, 0.0), (10, float("nan"))])
def test_arkit_motion_refuses_what_has_no_frames(num_frames: int, fps: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        arkit_motion(num_frames, 0, fps)


def test_arkit_motion_opens_the_jaw_with_the_flame_speaker_of_the_same_seed() -> None:
    found = []
    for seed in range(30):
        jaw = column(arkit_motion(1000, seed), "JawOpen")
        if jaw.std() > 0.05:
            found.append(np.corrcoef(jaw, speech_motion(1000, seed)[:, 103])[0, 1])
    assert len(found) >= 10
    assert np.median(found) > 0.4


def test_arkit_motion_moves_every_channel_and_rare_ones_little(clips: list[np.ndarray]) -> None:
    _, std = motion_statistics(clips)
    assert std.min() > 0.0003
    assert all(std[COLUMN[name]] < 0.02 for name in RARE)
    assert std[[COLUMN[name] for name in ("JawOpen", "MouthSmileLeft", "BrowInnerUp", "EyeSquintLeft")]].min() > 0.05


def test_arkit_motion_rests_at_exactly_zero_as_real_shapes_do(clips: list[np.ndarray]) -> None:
    shares = (np.concatenate(clips)[:, :52] == 0).mean(axis=0)
    assert 0.35 < shares.mean() < 0.65
    assert shares.max() < 0.97


def test_arkit_motion_is_nearly_alike_on_both_sides_but_not_quite(clips: list[np.ndarray]) -> None:
    everything = np.concatenate(clips)
    for left, right in PAIRS:
        if left.startswith(("EyeLook", "JawLeft", "MouthLeft")):
            continue
        both = np.corrcoef(column(everything, left), column(everything, right))[0, 1]
        assert 0.85 < both < 1, (left, both)
    smiling = [clip for clip in clips if column(clip, "MouthSmileLeft").max() > 0.1]
    assert len(smiling) > 20
    assert not any(np.array_equal(column(clip, "MouthSmileLeft"), column(clip, "MouthSmileRight")) for clip in smiling)


def test_arkit_motion_turns_both_eyes_together_and_says_so_in_the_look_shapes(clips: list[np.ndarray]) -> None:
    for clip in clips:
        yaw, pitch = column(clip, "LeftEyeYaw"), column(clip, "LeftEyePitch")
        assert np.abs(yaw - column(clip, "RightEyeYaw")).max() < 0.1
        np.testing.assert_array_equal(pitch, column(clip, "RightEyePitch"))
        inward, outward = column(clip, "EyeLookInLeft"), column(clip, "EyeLookOutLeft")
        assert not (inward * outward).any()
        np.testing.assert_array_equal(inward > 2 * VALUE_STEP, yaw / 0.61 > 2 * VALUE_STEP)
        np.testing.assert_array_equal(column(clip, "EyeLookDownLeft") > 0.01, pitch > 0.585 * 0.01)
        assert not (column(clip, "EyeLookUpLeft") * column(clip, "EyeLookDownLeft")).any()


def test_arkit_motion_jumps_from_one_look_to_the_next() -> None:
    """Eyes hold still in most frames; most of the way is gone in few of them."""
    shares = []
    for seed in range(40):
        steps = np.abs(np.diff(column(arkit_motion(750, seed), "LeftEyeYaw")))
        shares.append(np.sort(steps)[-len(steps) // 10 :].sum() / steps.sum())
    assert np.median(shares) > 0.5


def test_arkit_motion_blinks_and_looks_down_meanwhile(clips: list[np.ndarray]) -> None:
    num_blinks, together = 0, []
    for clip in clips:
        lid = column(clip, "EyeBlinkLeft")
        rises = np.flatnonzero((lid[1:-1] > lid[:-2] + 0.1) & (lid[1:-1] >= lid[2:])) + 1
        num_blinks += len(rises)
        together += [column(clip, "LeftEyePitch")[at] > column(clip, "LeftEyePitch")[at - 3] for at in rises if at > 2]
    assert 10 < num_blinks / (len(clips) * 16 / 60) < 30  # a minute
    assert np.mean(together) > 0.95


def test_arkit_motion_has_people_who_only_listen_and_heads_that_stand_still(clips: list[np.ndarray]) -> None:
    still = [not clip[:, 52:55].any() for clip in clips]
    assert 0.05 < np.mean(still) < 0.3
    speeds = np.array([np.diff(column(clip, "JawOpen")).std() for clip in clips])
    assert 0.2 < (speeds < 0.012).mean() < 0.5
    assert (speeds > 0.02).mean() > 0.4


def test_arkit_motion_covers_the_range_of_real_takes(clips: list[np.ndarray], takes: dict[str, np.ndarray]) -> None:
    everything = np.concatenate(clips)
    low, high = np.quantile(everything, [0.002, 0.998], axis=0)
    for name, take in takes.items():
        is_inside = (take >= low - 1e-4) & (take <= high + 1e-4)
        assert is_inside.mean() > 0.97, name
        assert is_inside.mean(axis=0).min() > 0.7, (name, ARKIT_CHANNELS[is_inside.mean(axis=0).argmin()])


def test_arkit_motion_moves_lips_as_fast_as_a_real_speaker(takes: dict[str, np.ndarray]) -> None:
    """Frame differences as a share of the deviation: near those of a recorded speaker, far from noise (1.4)."""
    everyone = [arkit_motion(500, seed) for seed in range(60)]
    real = takes["trainer_testset"]
    at = np.arange(int(len(real) * 25 / 60) - 1) * 60 / 25
    for name in ("JawOpen", "MouthFunnel", "MouthPucker", "MouthLowerDownLeft", "MouthUpperUpLeft"):
        values = np.interp(at, np.arange(len(real)), column(real, name))
        wanted = np.diff(values).std() / values.std()
        talking = [column(clip, name) for clip in everyone if column(clip, name).std() > 0.04]
        assert len(talking) > 15
        found = np.median([np.diff(course).std() / course.std() for course in talking])
        assert 0.6 * wanted < found < 1.6 * wanted, (name, wanted, found)
