"""The exact versions in constraints.txt: they agree with each other, so that pip finds a way from PyPI alone."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
TRITON_OF_TORCH = {"2.13.0": "3.7.1"}
"""What PyPI's torch requires on Linux; the build for processors, which may be installed here, requires none."""


def pins() -> dict[str, str]:
    """Package -> its version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    parts = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in parts}


def required_by(name: str) -> list[Requirement]:
    """What a package that is installed here requires on this machine, without extras."""
    try:
        found = [Requirement(text) for text in requires(name) or []]
    except PackageNotFoundError:
        return []
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_constraints_pin_the_triton_that_torch_wants():
    pinned = pins()
    assert pinned["torch"] in TRITON_OF_TORCH, "look up in PyPI's metadata of this torch which triton it requires"
    assert pinned["triton"] == TRITON_OF_TORCH[pinned["torch"]]


def test_constraints_agree_with_what_each_package_requires():
    pinned = pins()
    broken = [
        f"{name} requires {each}, {version} is pinned"
        for name in pinned
        for each in required_by(name)
        if (version := pinned.get(canonicalize_name(each.name))) and not each.specifier.contains(version, True)
    ]
    assert broken == []
