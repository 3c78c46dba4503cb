"""What is emitted beside bits: equal to the model's own operations, and to itself in any company."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from bitwise_vae import BitwiseVAEConfig, WindowEncoder, flip_pairs, pack_bits, random_checkpoint, unpack_bits
from pipeline.contract.specs import FlipRule
from pipeline.stages.emit import WindowEmitter, WindowSpans

T, DIMS, CODE = 5, 4, 8
RULE = FlipRule(pairs=3, ratio=0.4, seed=9)
CLIPS = (7, 23, 5, 40)
STARTS = ((0, 2), (0, 5, 18), (0,), (0, 5, 10, 33, 38))


@pytest.fixture(scope="module")
def model():
    config = BitwiseVAEConfig(motion_dim=DIMS, code_dim=CODE, patch_nums=(1, 2, T), hidden_dim=16, depth=2, num_heads=2)
    generator = np.random.default_rng(5)
    return random_checkpoint(config, generator.normal(size=DIMS), generator.uniform(0.5, 2, DIMS), 3)


@pytest.fixture(scope="module")
def motion():
    steps = torch.randn(sum(CLIPS), DIMS, generator=torch.Generator().manual_seed(1))
    return steps.cumsum(dim=0) / 2


@pytest.fixture(scope="module")
def spans():
    ends = np.cumsum(CLIPS)
    clip_of = np.repeat(np.arange(len(CLIPS)), [len(starts) for starts in STARTS])
    ids = [f"clip{clip}" for clip in clip_of]
    return WindowSpans(ends[clip_of] - np.array(CLIPS)[clip_of], ends[clip_of], np.concatenate(STARTS), lambda: ids)


@pytest.fixture(scope="module")
def everything(make_corpus):
    return make_corpus(emit=("latent", "flips", "decoded_prev"), flips=RULE)


def emitter_of(model, corpus, batch_size=32, num_threads=1, **limits):
    return WindowEmitter(model, WindowEncoder(model, batch_size=batch_size, num_threads=num_threads), corpus, **limits)


def taken(spans, rows):
    ids = spans.clip_ids()
    return replace(
        spans,
        clip_begin=spans.clip_begin[rows],
        clip_end=spans.clip_end[rows],
        start_frame=spans.start_frame[rows],
        clip_ids=lambda: [ids[row] for row in rows],
    )


def cut(motion, spans, row):
    """One window, frame by frame: prev and this, (T, DIMS) each, and which frames of prev are real."""
    begin, end, start = spans.clip_begin[row], spans.clip_end[row], spans.start_frame[row]
    window, is_real = torch.zeros(2 * T, DIMS), np.zeros(2 * T, bool)
    for place in range(2 * T):
        frame = begin + start - T + place
        if begin <= frame < end:
            window[place], is_real[place] = motion[frame], True
    return window[:T], window[T:], is_real[:T]


def test_emitted_columns_equal_the_models_own_operations(model, motion, spans, everything):
    bits, emitted = emitter_of(model, everything).encode(motion, spans)
    assert list(emitted) == ["this_latent", "flip_targets", "flip_bits", "decoded_prev_bits"]
    num_equal = 0
    for row in range(len(spans.start_frame)):
        prev, this, is_real = cut(motion, spans, row)
        with torch.no_grad():
            latent = model.encode_latent(torch.cat([prev, this])[None])[0, T:]
            prev_bits, this_bits = model.quant_to_vqidx(prev[None], this[None])
            decoded, _ = model.vqidx_to_motion(prev_bits, this_bits)
            decoded[0, ~torch.from_numpy(is_real)] = 0.0
            _, behind = model.quant_to_vqidx(decoded, this[None])
        np.testing.assert_array_equal(unpack_bits(bits[row, 1]), this_bits[0])
        np.testing.assert_allclose(emitted["this_latent"][row], latent, rtol=2e-3, atol=1e-5)
        num_equal += int((unpack_bits(emitted["decoded_prev_bits"][row]) == behind[0].numpy()).all())
        for pair in range(RULE.pairs):
            text = f"{RULE.seed}\0{spans.clip_ids()[row]}\0{spans.start_frame[row]}\0{pair}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            stored = torch.from_numpy(emitted["this_latent"][row : row + 1])
            for name, drawn in zip(
                ("flip_targets", "flip_bits"), flip_pairs(stored, model.patch_nums, RULE.ratio, [seed]), strict=True
            ):
                np.testing.assert_array_equal(emitted[name][row, pair], pack_bits(drawn[0].numpy()))
    assert num_equal == len(spans.start_frame)


def test_decoded_prev_changes_nothing_where_prev_is_all_padding_and_something_elsewhere(
    model, motion, spans, everything
):
    bits, emitted = emitter_of(model, everything).encode(motion, spans)
    is_same = (emitted["decoded_prev_bits"] == bits[:, 1]).all(axis=(1, 2))
    assert is_same[spans.start_frame == 0].all()
    assert not is_same[spans.start_frame > 0].all()
    assert (emitted["flip_bits"] != emitted["flip_targets"]).any()
    last = emitted["flip_bits"][:, :, -T:] == emitted["flip_targets"][:, :, -T:]
    assert last.all()


def test_emitting_leaves_the_bits_as_they_are(model, motion, spans, make_corpus, everything):
    alone, nothing = emitter_of(model, make_corpus()).encode(motion, spans)
    assert nothing == {}
    np.testing.assert_array_equal(emitter_of(model, everything).encode(motion, spans)[0], alone)


def test_one_choice_gives_the_columns_that_all_give(model, motion, spans, make_corpus, everything):
    _, both = emitter_of(model, everything).encode(motion, spans)
    for emit in (("latent",), ("flips",), ("decoded_prev",)):
        corpus = make_corpus(emit=emit, flips=RULE if emit == ("flips",) else None)
        _, emitted = emitter_of(model, corpus).encode(motion, spans)
        assert emitted
        for name, array in emitted.items():
            np.testing.assert_array_equal(array, both[name])


@pytest.fixture(scope="module")
def encoded(model, motion, spans, everything):
    return emitter_of(model, everything).encode(motion, spans)


@pytest.fixture(scope="module")
def shared_emitter(model, everything):
    return emitter_of(model, everything, batch_size=8, num_threads=2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=14))
def test_emitted_columns_depend_on_nothing_but_the_window(shared_emitter, encoded, motion, spans, rows):
    bits, emitted = shared_emitter.encode(motion, taken(spans, rows))
    np.testing.assert_array_equal(bits, encoded[0][rows])
    for name, array in emitted.items():
        np.testing.assert_array_equal(array, encoded[1][name][rows])


@pytest.mark.parametrize("flip_windows", [1, 3])
def test_flips_do_not_depend_on_how_many_are_drawn_together(model, motion, spans, everything, encoded, flip_windows):
    _, emitted = emitter_of(model, everything, flip_windows=flip_windows).encode(motion, spans)
    for name in ("flip_targets", "flip_bits"):
        np.testing.assert_array_equal(emitted[name], encoded[1][name])


def test_no_window_emits_empty_columns(model, everything):
    none = np.zeros(0, np.int64)
    bits, emitted = emitter_of(model, everything).encode(
        torch.zeros(0, DIMS), WindowSpans(none, none, none, lambda: [])
    )
    assert bits.shape == (0, 2, 8, 1)
    assert {name: array.shape for name, array in emitted.items()} == {
        "this_latent": (0, T, CODE),
        "flip_targets": (0, 3, 8, 1),
        "flip_bits": (0, 3, 8, 1),
        "decoded_prev_bits": (0, 8, 1),
    }


def test_latents_beyond_float16_become_its_largest_number(model, make_corpus, motion, spans):
    huge = random_checkpoint(model.config, np.zeros(DIMS), np.ones(DIMS), 3)
    with torch.no_grad():
        huge.encoder.code_mapping.weight.mul_(1e8)
    _, emitted = emitter_of(huge, make_corpus(emit=("latent",))).encode(motion, spans)
    assert np.isfinite(emitted["this_latent"]).all()
    assert np.abs(emitted["this_latent"]).max() == np.finfo(np.float16).max
