import subprocess
import sys

import pytest

import bitwise_vae


def test_package_exports_every_listed_name() -> None:
    for name in bitwise_vae.__all__:
        assert getattr(bitwise_vae, name) is not None
    assert dir(bitwise_vae) == sorted(bitwise_vae.__all__)


def test_package_refuses_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Codec'"):
        bitwise_vae.Codec  # type: ignore[attr-defined]  # noqa: B018


def test_package_loads_without_torch() -> None:
    program = (
        "import sys, bitwise_vae; bitwise_vae.pack_bits, bitwise_vae.BitwiseVAEConfig;sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
