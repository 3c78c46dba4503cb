"""The corpus of a demonstration codec: speakers kept apart, takes resampled, and trained on only where they may be."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bitwise_vae.config import ARKIT_GROUPS, FLAME_GROUPS
from jobs.demo.procedural_motion import speech_motion
from jobs.demo_codecs import demo_corpus
from jobs.demo_codecs.demo_corpus import SPACES, Take, at_fps, read_takes
from jobs.demo_codecs.procedural_arkit import arkit_motion
from pipeline.errors import InputFormatError, InputNotFoundError

make_corpus = partial(demo_corpus.make_corpus, num_held_out=2)


def test_spaces_have_codecs_of_their_columns() -> None:
    assert {name: space.small.motion_groups for name, space in SPACES.items()} == {
        "flame": FLAME_GROUPS,
        "arkit": ARKIT_GROUPS,
    }
    for space in SPACES.values():
        assert space.generator(3, 0).shape == (3, space.small.motion_dim) == (3, space.full.motion_dim)
        assert (space.small.hidden_dim, space.full.hidden_dim, space.small.fps) == (144, 512, 25)
    assert [space.codec_name for space in SPACES.values()] == ["demo_flame106.safetensors", "demo_arkit61.safetensors"]


def test_make_corpus_keeps_the_end_of_a_take_and_its_speakers_apart() -> None:
    recorded = speech_motion(1000, 5)
    corpus = make_corpus(SPACES["flame"], 0.03, 1, [Take("scott", recorded)])
    np.testing.assert_array_equal(corpus.test["real"].frames, recorded[825:])
    assert set(corpus.test) == {"procedural", "real"}
    names = [set(clips.clip_ids) for clips in (corpus.training, corpus.validation, *corpus.test.values())]
    assert sum(map(len, names)) == len(set().union(*names))
    np.testing.assert_array_equal(corpus.training.clip(0), speech_motion(1500, 1_000_000))
    first = corpus.training.clip_ids.index("scott-0")
    np.testing.assert_array_equal(corpus.training.clip(first), recorded[:800])


def test_make_corpus_of_a_space_that_learns_from_no_take_only_tests_with_them() -> None:
    takes = [Take("a", arkit_motion(300, 1)), Take("b", arkit_motion(200, 2))]
    corpus = make_corpus(SPACES["arkit"], 0.03, 1, takes)
    assert corpus.training.clip_ids == ("training-1000000", "training-1000001")
    assert corpus.validation.num_clips == 2
    assert list(corpus.test) == ["procedural", "real", "real: a", "real: b"]
    assert corpus.test["real"].num_frames == 500
    np.testing.assert_array_equal(corpus.test["real: b"].frames, takes[1].motion)
    assert list(make_corpus(SPACES["arkit"], 0.03, 1, takes[:1]).test) == ["procedural", "real"]
    assert list(make_corpus(SPACES["arkit"], 0.03, 1).test) == ["procedural"]


def test_make_corpus_is_the_same_in_several_processes() -> None:
    alone, shared = (make_corpus(SPACES["arkit"], 0.05, workers) for workers in (1, 2))
    assert alone.training.digest() == shared.training.digest()


def test_read_takes_resamples_every_take_to_25_fps(procedural_motion: Path) -> None:
    takes = read_takes([procedural_motion / "arkit_iphone"], SPACES["arkit"])
    assert len({take.name for take in takes}) == len(takes) == 3
    assert [take.name for take in takes] == sorted(take.name for take in takes)
    with np.load(procedural_motion / "arkit_iphone" / "take_1.npz") as content:
        np.testing.assert_array_equal(takes[1].motion[::5], content["values"][::12])  # 25 and 60 frames per second
    assert takes[1].motion.dtype == np.float32


def test_read_takes_reads_files_and_folders_in_the_order_given(tmp_path: Path, procedural_motion: Path) -> None:
    first, folder = tmp_path / "z.npz", tmp_path / "more"
    folder.mkdir()
    np.savez(first, motion=speech_motion(60, 1), fps=25.0)
    np.savez(folder / "a.npz", motion=speech_motion(60, 2, 50.0), fps=50.0)
    (folder / "notes.txt").write_text("no motion")
    takes = read_takes([first, folder], SPACES["flame"])
    assert [take.name for take in takes] == ["z", "a"]
    np.testing.assert_array_equal(takes[0].motion, speech_motion(60, 1))
    np.testing.assert_array_equal(takes[1].motion, speech_motion(60, 2, 50.0)[::2])
    assert read_takes([], SPACES["flame"]) == []
    assert len(read_takes([procedural_motion / "flame106"], SPACES["flame"])) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"motion": np.zeros((40, 106), np.float32), "fps": 25.0}, r"wanted \(frames, 61\)"),
        ({"values": np.zeros(61, np.float32), "fps": 25.0}, r"wanted \(frames, 61\)"),
        ({"poses": np.zeros((40, 61), np.float32), "fps": 25.0}, "motion or values"),
        ({"values": np.zeros((40, 61), np.float32)}, "and fps; found values"),
    ],
)
def test_read_takes_refuses_what_is_no_take_of_the_space(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(InputFormatError, match=message):
        read_takes([tmp_path / "odd.npz"], SPACES["arkit"])


def test_read_takes_refuses_a_place_without_takes(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_takes([tmp_path], SPACES["arkit"])


def test_at_fps_is_linear_in_time() -> None:
    ramp = np.arange(61, dtype=np.float32)[:, None] / 30
    np.testing.assert_allclose(at_fps(ramp, 30.0, 25.0)[:, 0], np.arange(51) / 25, atol=1e-6)
