import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from bitwise_vae.bits import pack_bits, pack_bits_torch, unpack_bits, unpack_bits_torch

bounded = settings(deadline=None, derandomize=True)

shapes = st.builds(
    lambda outer, num_bytes: (*outer, 8 * num_bytes),
    st.lists(st.integers(0, 5), max_size=4),
    st.integers(0, 5),
)
bit_arrays = shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1)))
"""Any number of axes, none but the bits' included, and axes of no length."""


def packed_one_by_one(bits: np.ndarray) -> np.ndarray:
    """The contract in plain words: bit i of a token stands in byte i // 8, the first of eight highest."""
    packed = np.zeros((*bits.shape[:-1], bits.shape[-1] // 8), np.uint8)
    for place in np.ndindex(bits.shape):
        packed[(*place[:-1], place[-1] // 8)] += int(bits[place]) << (7 - place[-1] % 8)
    return packed


def test_pack_bits_puts_the_first_bit_highest() -> None:
    bits = np.array([[1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0]])
    assert pack_bits(bits).tolist() == [[0b10000001, 0b00000110]]


@bounded
@given(bit_arrays)
def test_pack_bits_round_trips(bits: np.ndarray) -> None:
    packed = pack_bits(bits)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(packed, packed_one_by_one(bits), strict=True)
    np.testing.assert_array_equal(unpack_bits(packed), bits)


@bounded
@given(bit_arrays)
def test_torch_twins_equal_numpy(bits: np.ndarray) -> None:
    packed = pack_bits_torch(torch.from_numpy(bits).int())
    np.testing.assert_array_equal(packed.numpy(), pack_bits(bits))
    np.testing.assert_array_equal(unpack_bits_torch(packed).numpy(), bits)


@bounded
@given(shapes.flatmap(lambda shape: arrays(np.uint8, (*shape[:-1], shape[-1] // 8))))
def test_unpack_bits_round_trips(packed: np.ndarray) -> None:
    bits = unpack_bits(packed)
    assert bits.shape == (*packed.shape[:-1], 8 * packed.shape[-1])
    np.testing.assert_array_equal(pack_bits(bits), packed, strict=True)
    twin = unpack_bits_torch(torch.from_numpy(packed))
    np.testing.assert_array_equal(twin.numpy(), bits, strict=True)
    np.testing.assert_array_equal(pack_bits_torch(twin).numpy(), packed, strict=True)


@bounded
@given(bit_arrays, st.sampled_from(["bool", "int8", "int32", "int64"]), st.integers(0, 3))
def test_pack_bits_reads_any_whole_type_in_any_memory_order(bits: np.ndarray, dtype: str, turns: int) -> None:
    turned = np.asfortranarray(bits.astype(dtype)) if turns % 2 else bits.astype(dtype)
    if turns > 1:
        turned = np.flip(np.flip(turned, -1).copy(), -1)  # negative strides
    wanted = packed_one_by_one(bits)
    np.testing.assert_array_equal(pack_bits(turned), wanted, strict=True)
    if turns <= 1:  # torch knows no negative strides
        np.testing.assert_array_equal(pack_bits_torch(torch.from_numpy(turned)).numpy(), wanted, strict=True)


def test_pack_bits_reads_booleans_and_strided_tensors() -> None:
    bits = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).t() > 0.5
    np.testing.assert_array_equal(pack_bits_torch(bits).numpy(), pack_bits(bits.numpy()))


def test_pack_bits_refuses_part_of_a_byte() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        pack_bits(np.zeros((2, 12), dtype=np.uint8))
    with pytest.raises(ValueError, match="multiple of 8"):
        pack_bits_torch(torch.zeros(2, 12))


def test_bits_module_loads_without_torch() -> None:
    program = "import sys, bitwise_vae.bits, bitwise_vae.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
