from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from bitwise_vae import BitwiseVAE, BitwiseVAEConfig, pack_bits, random_checkpoint
from bitwise_vae.checkpoints.checkpoint import load_checkpoint
from pipeline.contract.specs import FlipRule
from pipeline.errors import ConfigError
from pipeline.loader import TokenDataset, TokenFeatures, TokenStream

SCHEDULES = {
    "tiny": BitwiseVAEConfig(motion_dim=6, code_dim=8, patch_nums=(1, 2, 3, 7), hidden_dim=12, depth=1, num_heads=2),
    "released": BitwiseVAEConfig(hidden_dim=16, depth=1, num_heads=2),
}
schedules = st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True).map(lambda sizes: tuple(sorted(sizes)))


@pytest.fixture(scope="module", params=SCHEDULES)
def model(request: pytest.FixtureRequest) -> BitwiseVAE:
    config = SCHEDULES[request.param]
    return random_checkpoint(config, np.zeros(config.motion_dim), np.ones(config.motion_dim), seed=3).eval()


@pytest.fixture
def features(model: BitwiseVAE) -> TokenFeatures:
    return TokenFeatures(model.patch_nums, model.code_dim)


@pytest.fixture
def halves(model: BitwiseVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of real windows of a random walk, prev and this."""
    frames = model.config.window_frames
    walk = torch.randn(5, 2 * frames, model.motion_dim, generator=torch.Generator().manual_seed(1)).cumsum(1)
    with torch.inference_mode():
        prev, this = model.quant_to_vqidx(walk[:, :frames], walk[:, frames:])
    return prev, this


def packed(bits: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(pack_bits(bits.numpy()))


def test_unpack_gives_the_bits_that_were_packed(features, halves):
    _, this = halves
    found = features.unpack(packed(this))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, this)


def test_unpack_refuses_bits_of_another_schedule(features, halves):
    _, this = halves
    with pytest.raises(ConfigError, match="build TokenFeatures from the codec of the dataset"):
        features.unpack(packed(this)[:, 1:])
    with pytest.raises(ConfigError, match="wanted packed bits"):
        features.unpack(this)


def test_next_scale_features_equal_the_models(model, features, halves):
    _, this = halves
    found = features.next_scale_features(features.unpack(packed(this)))
    np.testing.assert_array_equal(found, model.vqidx_to_ms_vqfeat(this))


def test_next_scale_features_of_some_scales_equal_the_models(model, features, halves):
    _, this = halves
    for num_scales in range(1, len(model.patch_nums)):
        known = this[:, : sum(model.patch_nums[:num_scales])]
        found = features.next_scale_features(known.to(torch.uint8), num_scales)
        np.testing.assert_array_equal(found, model.vqidx_to_ar_vqfeat(num_scales - 1, known))


def test_next_scale_features_refuse_counts_out_of_range(features, halves):
    for count in (0, len(features.patch_nums)):
        with pytest.raises(ConfigError, match="num_scales must be 1 to"):
            features.next_scale_features(halves[1], count)


def test_code_feature_is_what_the_model_decodes(model, features, halves):
    prev, this = halves
    codes = torch.cat([features.code_feature(features.unpack(packed(bits))) for bits in halves], dim=1)
    with torch.inference_mode():
        wanted = torch.cat(model.vqidx_to_motion(prev, this), dim=1)
        np.testing.assert_array_equal(model.decode_quantized(codes), wanted)


def test_features_equal_a_plain_computation(features, halves):
    """Codes of +-1 / sqrt(C), interpolated and averaged by numpy."""
    _, this = halves
    frames, code_dim = features.window_frames, features.code_dim
    begin, total, nexts = 0, np.zeros((5, frames, code_dim)), []
    for size, next_size in pairwise((*features.patch_nums, 0)):
        code = (2 * this[:, begin : begin + size].numpy() - 1) / np.sqrt(code_dim)
        place = (np.arange(frames) + 0.5) * size / frames - 0.5
        along_time = [np.interp(place, np.arange(size), line) for line in code.transpose(0, 2, 1).reshape(-1, size)]
        total += np.reshape(along_time, (5, code_dim, frames)).transpose(0, 2, 1)
        begin += size
        for token in range(next_size):
            span = slice(token * frames // next_size, -(-(token + 1) * frames // next_size))
            nexts.append(total[:, span].mean(axis=1))
    np.testing.assert_allclose(features.code_feature(this), total, atol=2e-6)
    np.testing.assert_allclose(features.next_scale_features(this), np.stack(nexts, axis=1), atol=2e-6)


def test_features_take_several_windows_a_sample(features, halves):
    _, this = halves
    pairs = torch.stack([this[:2], this[2:4]])
    for function in (features.next_scale_features, features.code_feature):
        np.testing.assert_array_equal(function(pairs).flatten(0, 1), function(this[:4]))
    np.testing.assert_array_equal(features.unpack(packed(pairs)), pairs)


def test_levels_and_block_causal_mask_by_hand():
    features = TokenFeatures((1, 2), 8)
    assert features.levels().tolist() == [0, 1, 1]
    wanted = [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    assert features.block_causal_mask(num_context=2).int().tolist() == wanted
    assert features.block_causal_mask().int().tolist() == [row[2:] for row in wanted[2:]]


@given(schedules, st.integers(0, 4))
def test_block_causal_mask_never_shows_a_later_scale(patch_nums, num_context):
    features = TokenFeatures(patch_nums, 8)
    mask = features.block_causal_mask(num_context)
    scale_of = [-1] * num_context + [scale for scale, size in enumerate(patch_nums) for _ in range(size)]
    for row, own in enumerate(scale_of):
        assert mask[row].tolist() == [other <= own for other in scale_of]
    assert mask.any(dim=1).all()


@settings(deadline=None)
@given(schedules, st.data())
def test_valid_tokens_are_those_that_pool_a_real_frame(patch_nums, data):
    """Against torch's own pooling of a curve that is 1 where frames are real."""
    features = TokenFeatures(patch_nums, 8)
    frames = patch_nums[-1]
    counts = torch.tensor(data.draw(st.lists(st.integers(0, frames), min_size=1, max_size=4)))
    is_first = (torch.arange(frames) < counts[:, None]).float()
    for found, is_real in ((features.this_valid(counts), is_first), (features.prev_valid(counts), is_first.flip(1))):
        wanted = torch.cat([F.adaptive_avg_pool1d(is_real, size) for size in patch_nums], dim=1) > 0
        assert found.tolist() == wanted.tolist()


def test_valid_tokens_keep_leading_axes():
    features = TokenFeatures((1, 2, 4), 8)
    counts = torch.tensor([[0, 1], [3, 4]])
    assert features.this_valid(counts).int().tolist() == [
        [[0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0]],
        [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]],
    ]
    assert features.prev_valid(counts)[0, 1].int().tolist() == [1, 0, 1, 0, 0, 0, 1]


def test_flip_pairs_refuse_latents_that_are_not_as_stored(features):
    rule = FlipRule(pairs=1, ratio=0.3, seed=0)
    latent = torch.zeros(1, features.window_frames, features.code_dim)
    with pytest.raises(ConfigError, match="take the column this_latent as the loader gives it"):
        features.flip_pairs(latent, ["a"], torch.tensor([0]), rule, 0)
    with pytest.raises(ConfigError, match="float16"):
        features.flip_pairs(latent[:, 1:].half(), ["a"], torch.tensor([0]), rule, 0)


@pytest.fixture(scope="module")
def emitting(tmp_path_factory: pytest.TempPathFactory, motion, tiny_codec, loader_tools) -> SimpleNamespace:
    """A dataset with latents and flips, and its codec."""
    output = tmp_path_factory.mktemp("emitting") / "out"
    extra = ("emit=latent,flips", "flips.pairs=3", "flips.ratio=0.4", "flips.seed=11")
    loader_tools.tokenize(motion, output, tiny_codec, *extra)
    return SimpleNamespace(url=str(output), model=load_checkpoint(tiny_codec))


@pytest.mark.parametrize("windows_per_sample", [1, 2])
def test_flip_pairs_drawn_from_stored_latents_equal_stored_ones(emitting, windows_per_sample):
    dataset = TokenDataset(emitting.url, split=None, windows_per_sample=windows_per_sample)
    features = TokenFeatures.of_codec(dataset.codec)
    batch = dataset.batch(range(len(dataset)))
    rule = dataset.contract.corpus.flips
    assert (rule.ratio, rule.seed) == (0.4, 11)
    for pair in range(rule.pairs):
        drawn = features.flip_pairs(batch["this_latent"], batch["clip_id"], batch["start_frame"], rule, pair)
        for bits, name in zip(drawn, ("flip_targets", "flip_bits"), strict=True):
            stored = batch[name].select(-3, pair)
            np.testing.assert_array_equal(packed(bits), stored)
            assert (features.unpack(stored) != features.unpack(batch["this_bits"])).any()


def test_training_tensors_of_a_stream_equal_the_models(emitting):
    dataset, model = TokenDataset(emitting.url), emitting.model
    features = TokenFeatures.of_codec(dataset.codec)
    batch = next(iter(TokenStream(dataset, 8, has_style=True)))
    found = features.training_tensors(batch)
    bits = {
        name: torch.from_numpy(np.unpackbits(batch[f"{name}_bits"].numpy(), axis=-1))
        for name in ("prev", "this", "style")
    }
    np.testing.assert_array_equal(found.targets, bits["this"])
    np.testing.assert_array_equal(found.inputs, model.vqidx_to_ms_vqfeat(bits["this"]))
    np.testing.assert_array_equal(found.prev, model.quantizer.quantized_from_bits(bits["prev"]))
    np.testing.assert_array_equal(found.style, model.quantizer.quantized_from_bits(bits["style"]))
    np.testing.assert_array_equal(found.prev_valid, features.prev_valid(batch["prev_valid_frames"]))
    np.testing.assert_array_equal(found.this_valid, features.this_valid(batch["this_valid_frames"]))


def test_training_tensors_move_a_pair_to_the_device_too(emitting):
    dataset = TokenDataset(emitting.url)
    features = TokenFeatures.of_codec(dataset.codec)
    batch = dataset.batch(range(3))
    pair = features.unpack(batch["flip_targets"][:, 0]), features.unpack(batch["flip_bits"][:, 0])
    found = features.training_tensors(batch, "meta", pair)
    assert {tensor.device.type for tensor in vars(found).values() if tensor is not None} == {"meta"}


def test_training_tensors_read_flipped_bits_and_predict_targets(emitting):
    dataset, model = TokenDataset(emitting.url), emitting.model
    features = TokenFeatures.of_codec(dataset.codec)
    batch = dataset.batch(range(6))
    pair = features.unpack(batch["flip_targets"][:, 0]), features.unpack(batch["flip_bits"][:, 0])
    found = features.training_tensors(batch, pair=pair)
    np.testing.assert_array_equal(found.targets, pair[0])
    np.testing.assert_array_equal(found.inputs, model.vqidx_to_ms_vqfeat(pair[1]))
    assert (found.inputs != features.training_tensors(batch).inputs).any()
    assert found.style is None
