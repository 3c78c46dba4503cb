"""The rule for skipped tests: a clone by itself passes and says what was skipped; where all is required, it fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REQUIRE_ALL = "MOTION_TOKENS_TESTS_REQUIRE_ALL"
WANTING = (
    "tests/jobs/demo_codecs/test_procedural_arkit.py", "tests/jobs/deploy/test_render.py", "tests/test_hardware.py",
)  # fmt: skip
"""Files of tests, some of which want recorded motion, schemas of KubeRay or other hardware."""
COUNTS = re.compile(r"(\d+) (passed|skipped|failed|error)")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tests and what they read of this checkout, and nothing beside it."""
    folder = tmp_path_factory.mktemp("alone") / "clone"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("tests", "jobs", "pipeline", "bitwise_vae"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "tests" / "test_hardware.py").write_text(
        "import pytest\n\n\ndef test_hardware() -> None:\n    pytest.skip('hardware: no abacus')\n"
    )
    return folder


def run_tests(clone: Path, **environment: str) -> tuple[int, str]:
    """Run some of its tests and return the exit code and the output."""
    inherited = {name: value for name, value in os.environ.items() if name not in (REQUIRE_ALL, "PYTHONPATH")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "real or overlays_are or hardware"]
    done = subprocess.run(
        [*command, *WANTING], cwd=clone, env=inherited | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_a_clone_by_itself_passes_and_says_what_it_skipped(clone: Path) -> None:
    code, output = run_tests(clone)
    assert code == 0, output
    assert "2 skipped: no recorded motion: expected shared/data beside the checkout" in output
    assert "3 skipped: no schemas of KubeRay: expected shared/schemas beside the checkout" in output
    assert "1 skipped: hardware: no abacus" in output


def test_a_clone_by_itself_fails_where_every_test_is_required(clone: Path) -> None:
    code, output = run_tests(clone, **{REQUIRE_ALL: "1"})
    assert code == 1, output
    counts = {name: int(number) for number, name in COUNTS.findall(output.splitlines()[-1])}
    assert (counts["error"], counts["skipped"]) == (5, 1), output
    assert f"may not be skipped where {REQUIRE_ALL} is set: no recorded motion" in output
    assert f"may not be skipped where {REQUIRE_ALL} is set: no schemas of KubeRay" in output
