import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bitwise_vae.bits import pack_bits, pack_bits_torch, unpack_bits, unpack_bits_torch

bit_arrays = arrays(
    np.uint8,
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([8, 16, 32])),
    elements=st.integers(0, 1),
)


def test_pack_bits_puts_the_first_bit_highest() -> None:
    bits = np.array([[1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0]])
    assert pack_bits(bits).tolist() == [[0b10000001, 0b00000110]]


@given(bit_arrays)
def test_pack_bits_round_trips(bits: np.ndarray) -> None:
    packed = pack_bits(bits)
    assert packed.shape == (*bits.shape[:-1], bits.shape[-1] // 8)
    np.testing.assert_array_equal(unpack_bits(packed), bits)


@given(bit_arrays)
def test_torch_twins_equal_numpy(bits: np.ndarray) -> None:
    packed = pack_bits_torch(torch.from_numpy(bits).int())
    np.testing.assert_array_equal(packed.numpy(), pack_bits(bits))
    np.testing.assert_array_equal(unpack_bits_torch(packed).numpy(), bits)


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
