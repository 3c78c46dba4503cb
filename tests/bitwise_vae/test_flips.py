import hashlib

import numpy as np
import pytest
import torch

from bitwise_vae import flips
from bitwise_vae.model import BitwiseVAE
from bitwise_vae.quantizer import MultiScaleQuantizer

PATCH_NUMS = (1, 5, 25, 50, 100)


def random_latent(num_windows: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_windows, 100, 16, generator=torch.Generator().manual_seed(seed)) / 4


def exact_latent(num_windows: int = 3) -> torch.Tensor:
    """Values that need no random generator and no rounding."""
    steps = torch.arange(num_windows * 100 * 16, dtype=torch.int64)
    return ((steps * 7919 % 257) - 128).double().reshape(num_windows, 100, 16) / 256


def test_mix64_is_splitmix64() -> None:
    state = np.array([flips.GOLDEN_GAMMA], np.uint64)
    (first_word,) = flips.mix64(torch.from_numpy(state.view(np.int64))).numpy().view(np.uint64)
    assert first_word == 0xE220A8397B1DCDAF


def test_flip_pairs_at_ratio_zero_are_clean() -> None:
    latent = random_latent()
    target, flipped = flips.flip_pairs(latent, PATCH_NUMS, 0.0, range(6))
    np.testing.assert_array_equal(target, flipped)
    np.testing.assert_array_equal(target, MultiScaleQuantizer(PATCH_NUMS).bits_from_latent(latent.double()))


def test_flip_pairs_equal_the_originals_bits_at_ratio_zero(golden, require_equal_bits) -> None:
    latent = golden.tensor("latent")[:, golden.config.window_frames :]
    target, _ = golden.model.flip_pairs(latent, 0.0, range(len(latent)))
    require_equal_bits(target.numpy(), golden.arrays["this_bits"], latent.numpy(), golden.config.patch_nums)


def test_flip_pairs_never_change() -> None:
    """Pairs stored by one release must equal those drawn later by another."""
    pairs = flips.flip_pairs(exact_latent(), PATCH_NUMS, 0.3, [0, 1, 2**64 - 1])
    packed = np.packbits(torch.stack(pairs).numpy().astype(bool))
    assert (
        hashlib.sha256(packed.tobytes()).hexdigest()
        == "02e185333a6fc5db6948c7df7b3972833b51854b112d24631ded043c90d0f1df"
    )


def test_flip_pairs_do_not_depend_on_the_batch() -> None:
    latent, seeds = random_latent(), [3, 1, 4, 1, 5, 9]
    together = flips.flip_pairs(latent, PATCH_NUMS, 0.3, seeds)
    for place in range(6):
        alone = flips.flip_pairs(latent[place : place + 1], PATCH_NUMS, 0.3, seeds[place : place + 1])
        for half, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(half[place], other[0])


def test_flip_pairs_read_seeds_of_any_kind_alike() -> None:
    words = [0, 5, 2**63, 2**64 - 1, 17, 2**63 - 1]
    kinds = (
        words,
        np.array(words, dtype=np.uint64),
        np.array(words, dtype=np.uint64).view(np.int64),
        torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64)),
    )
    found = [flips.flip_pairs(random_latent(), PATCH_NUMS, 0.3, seeds)[1] for seeds in kinds]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_flip_pairs_leave_the_last_scale_alone() -> None:
    target, flipped = flips.flip_pairs(random_latent(), PATCH_NUMS, 1.0, range(6))
    np.testing.assert_array_equal(target[:, 81:], flipped[:, 81:])
    assert (target[:, :81] != flipped[:, :81]).any()


def test_flip_pairs_flip_half_the_ratio_on_average() -> None:
    """Each window and scale has its own ratio, uniform in [0, flip_ratio]."""
    target, flipped = flips.flip_pairs(random_latent(200), PATCH_NUMS, 0.4, range(200))
    is_flipped = (target != flipped).double()
    assert is_flipped[:, 31:81].mean() == pytest.approx(0.2, abs=0.03)
    ratios = is_flipped[:, 31:81].mean(dim=(1, 2))
    assert ratios.min() < 0.03
    assert 0.37 < ratios.max() < 0.46


def test_flip_pairs_targets_follow_the_flips() -> None:
    """A scale after a flip codes what the flipped code left: the targets are not the clean bits."""
    latent = random_latent()
    target, flipped = flips.flip_pairs(latent, PATCH_NUMS, 0.3, range(6))
    clean, _ = flips.flip_pairs(latent, PATCH_NUMS, 0.0, range(6))
    np.testing.assert_array_equal(target[:, 0], clean[:, 0])
    assert (target[:, 1:] != clean[:, 1:]).double().mean() > 0.02
    quantizer = MultiScaleQuantizer(PATCH_NUMS)
    before_last = flipped.clone()
    residual = latent.double() - sum(_spread_scales(quantizer, before_last))
    np.testing.assert_array_equal(target[:, 81:], (residual > 0).int())


def _spread_scales(quantizer: MultiScaleQuantizer, bits: torch.Tensor) -> list[torch.Tensor]:
    coarse = bits[:, :81]
    parts = torch.split(coarse, list(PATCH_NUMS[:-1]), dim=1)
    codes = [(part.double() * 2 - 1) / 4 for part in parts]
    return [torch.nn.functional.interpolate(c.mT, size=100, mode="linear").mT for c in codes]


def test_flip_pairs_of_stored_half_floats_are_reproducible(tiny_model: BitwiseVAE) -> None:
    latent = torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(1)).half()
    stored, drawn_later = (
        tiny_model.flip_pairs(latent, 0.3, [1, 2, 3]),
        tiny_model.flip_pairs(latent.float(), 0.3, [1, 2, 3]),
    )
    for one, other in zip(stored, drawn_later, strict=True):
        assert one.dtype == torch.int32
        np.testing.assert_array_equal(one, other)


def test_flip_pairs_refuse() -> None:
    with pytest.raises(ValueError, match="flip_ratio must be within 0 and 1"):
        flips.flip_pairs(random_latent(), PATCH_NUMS, 1.5, range(6))
    with pytest.raises(ValueError, match="one seed a window, 6 in all"):
        flips.flip_pairs(random_latent(), PATCH_NUMS, 0.3, [1])
