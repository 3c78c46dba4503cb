from collections.abc import Callable

import numpy as np
import pytest
import torch

from bitwise_vae.checkpoints.checkpoint import random_checkpoint
from bitwise_vae.config import BitwiseVAEConfig
from bitwise_vae.model import BitwiseVAE

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def require_close(found: torch.Tensor, wanted: np.ndarray) -> None:
    span = float(wanted.max() - wanted.min())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5 * span)


def test_state_dict_has_the_originals_names_and_shapes(golden) -> None:
    prefix = "weights/"
    wanted = {
        name.removeprefix(prefix): value.shape for name, value in golden.arrays.items() if name.startswith(prefix)
    }
    assert {name: tuple(tensor.shape) for name, tensor in golden.model.state_dict().items()} == wanted


def test_attn_mask_is_the_originals(golden) -> None:
    np.testing.assert_array_equal(BitwiseVAE(golden.config).attn_mask, golden.arrays["weights/attn_mask"])


def test_encode_latent_equals_the_original(golden) -> None:
    require_close(golden.model.encode_latent(golden.tensor("motion")), golden.arrays["latent"])


def test_quant_to_vqidx_equals_the_original(golden, require_equal_bits: Callable[..., None]) -> None:
    frames = golden.config.window_frames
    prev, this = golden.model.quant_to_vqidx(golden.prev, golden.this)
    assert prev.dtype == this.dtype == torch.int32
    prev_latent, this_latent = np.split(golden.arrays["latent"], [frames], axis=1)
    require_equal_bits(prev.numpy(), golden.arrays["prev_bits"], prev_latent, golden.config.patch_nums)
    require_equal_bits(this.numpy(), golden.arrays["this_bits"], this_latent, golden.config.patch_nums)


def test_quant_to_vqidx_of_prev_alone_equals_the_original(golden, require_equal_bits: Callable[..., None]) -> None:
    prev, this = golden.model.quant_to_vqidx(golden.prev)
    prev_latent = golden.arrays["latent"][:, : golden.config.window_frames]
    require_equal_bits(prev.numpy(), golden.arrays["prev_only_bits"], prev_latent, golden.config.patch_nums)
    assert this is None


def test_vqidx_to_motion_equals_the_original(golden) -> None:
    prev, this = golden.model.vqidx_to_motion(golden.tensor("prev_bits"), golden.tensor("this_bits"))
    require_close(prev, golden.arrays["decoded_prev"])
    require_close(this, golden.arrays["decoded_this"])


def test_quantizer_forward_equals_the_original(golden, require_equal_bits: Callable[..., None]) -> None:
    latent = golden.tensor("latent")[:, golden.config.window_frames :]
    output = golden.model.quantizer(latent)
    require_close(output.quantized, golden.arrays["this_quantized"])
    require_close(output.losses, golden.arrays["this_losses"])
    require_equal_bits(output.bits.numpy(), golden.arrays["this_bits"], latent.numpy(), golden.config.patch_nums)


def test_vqidx_to_ms_vqfeat_equals_the_original(golden) -> None:
    require_close(golden.model.vqidx_to_ms_vqfeat(golden.tensor("this_bits")), golden.arrays["this_ms_vqfeat"])


def test_vqidx_to_ar_vqfeat_equals_the_original(golden) -> None:
    patch_nums = golden.config.patch_nums
    for pidx in range(len(patch_nums) - 1):
        generated = golden.tensor("this_bits")[:, : sum(patch_nums[: pidx + 1])]
        found = golden.model.vqidx_to_ar_vqfeat(pidx, generated)
        require_close(found, golden.arrays[f"this_ar_vqfeat_{pidx}"])
        np.testing.assert_array_equal(found, golden.model.vqidx_to_ar_vqfeat(pidx, golden.tensor("this_bits")))


def test_prev_bits_do_not_depend_on_this(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    prev, this = tiny_windows.chunk(2, dim=1)
    bits, bits_with_other_this = (tiny_model.quant_to_vqidx(prev, other)[0] for other in (this, this + 1))
    np.testing.assert_array_equal(bits, bits_with_other_this)
    np.testing.assert_array_equal(bits, tiny_model.quant_to_vqidx(prev)[0])


def test_this_bits_depend_on_prev_and_role(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    prev, this = tiny_windows.chunk(2, dim=1)
    bits, bits_with_other_prev = (tiny_model.quant_to_vqidx(other, this)[1] for other in (prev, prev + 1))
    assert (bits != bits_with_other_prev).any()
    assert (bits != tiny_model.quant_to_vqidx(this)[0]).any()


def test_norm_with_stats_round_trips(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    normed = tiny_model.norm_with_stats(tiny_windows)
    np.testing.assert_allclose(normed[0, 0, 0], (tiny_windows[0, 0, 0] + 1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(tiny_model.unnorm_with_stats(normed), tiny_windows, atol=1e-6)


def test_forward_decodes_its_own_bits(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    output = tiny_model(tiny_windows)
    decoded = torch.cat(tiny_model.vqidx_to_motion(output.prev_bits, output.this_bits), dim=1)
    np.testing.assert_allclose(output.motion, decoded, atol=1e-4)
    assert output.prev_losses.shape == output.this_losses.shape == (4,)


def test_forward_bits_are_those_of_quant_to_vqidx(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    output = tiny_model(tiny_windows)
    prev, this = tiny_model.quant_to_vqidx(*tiny_windows.chunk(2, dim=1))
    np.testing.assert_array_equal(output.prev_bits, prev)
    np.testing.assert_array_equal(output.this_bits, this)


def test_forward_reaches_every_weight(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    with torch.enable_grad():
        output = tiny_model.train()(tiny_windows)
        loss = (output.motion - tiny_windows).square().mean() + output.prev_losses.sum() + output.this_losses.sum()
        loss.backward()
    for name, weight in tiny_model.named_parameters():
        assert weight.grad is not None, name
        assert (weight.grad != 0).any(), name


def test_initial_decoder_is_almost_silent(tiny_config) -> None:
    torch.manual_seed(0)
    model = BitwiseVAE(tiny_config)
    assert (model.decoder.out_mapping.bias == 0).all()
    bound = 0.05 * (6 / (24 + 6)) ** 0.5
    assert model.decoder.out_mapping.weight.abs().max() <= bound


def test_equally_long_schedules_decode_differently() -> None:
    schedules = (1, 5, 25, 50, 100), (1, 10, 20, 50, 100)
    configs = [BitwiseVAEConfig(hidden_dim=16, depth=1, patch_nums=schedule) for schedule in schedules]
    one, other = (random_checkpoint(config, np.zeros(106), np.ones(106), seed=1) for config in configs)
    assert {name: weight.shape for name, weight in one.state_dict().items()} == {
        name: weight.shape for name, weight in other.state_dict().items()
    }
    bits = torch.randint(0, 2, (2, 3, 181, 32), generator=torch.Generator().manual_seed(2))
    motion, other_motion = one.vqidx_to_motion(*bits)[1], other.vqidx_to_motion(*bits)[1]
    assert (motion - other_motion).abs().max() > 0.1


def test_flip_quant_to_vqidx_without_flips_is_clean(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    prev, this = tiny_windows.chunk(2, dim=1)
    clean = tiny_model.quant_to_vqidx(prev, this)[1]
    np.testing.assert_array_equal(tiny_model.flip_quant_to_vqidx(prev, this, 0.0), clean)


def test_flip_quant_to_vqidx_follows_its_generator(tiny_model: BitwiseVAE, tiny_windows: torch.Tensor) -> None:
    prev, this = tiny_windows.chunk(2, dim=1)
    one, same, other = (
        tiny_model.flip_quant_to_vqidx(prev, this, 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_encode_latent_refuses_other_shapes(tiny_model: BitwiseVAE) -> None:
    for shape in ((1, 13, 6), (1, 14, 5), (14, 6)):
        with pytest.raises(ValueError, match="wanted motion"):
            tiny_model.encode_latent(torch.zeros(shape))


def test_vqidx_operations_refuse_other_shapes(tiny_model: BitwiseVAE) -> None:
    bits = torch.zeros(1, 13, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match="wanted bits"):
        tiny_model.vqidx_to_motion(bits, bits[:, 1:])
    with pytest.raises(ValueError, match="wanted bits"):
        tiny_model.vqidx_to_ms_vqfeat(bits[..., :7])
    with pytest.raises(ValueError, match="pidx must be 0 to 2"):
        tiny_model.vqidx_to_ar_vqfeat(3, bits)
    with pytest.raises(ValueError, match="scales 0 to 2 have 6 tokens, found 5"):
        tiny_model.vqidx_to_ar_vqfeat(2, bits[:, :5])
