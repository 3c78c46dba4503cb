"""Rules of the house that no linter knows: see CONTRIBUTING.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400
MOST_MODULES = 15
MODULES = [path for name in ("bitwise_vae", "pipeline", "jobs") for path in sorted((ROOT / name).rglob("*.py"))]


def test_no_module_has_more_than_400_lines():
    assert {path.name: n for path in MODULES if (n := len(path.read_text().splitlines())) > MOST_LINES} == {}


def test_no_folder_has_more_than_15_modules():
    counts = Counter(path.parent.relative_to(ROOT) for path in MODULES)
    assert {str(folder): count for folder, count in counts.items() if count > MOST_MODULES} == {}
