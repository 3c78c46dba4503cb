from __future__ import annotations

import subprocess
import sys


def test_what_workers_of_the_graph_import_needs_no_torch() -> None:
    """Tasks that read and write start in a fresh process: torch would take seconds of each."""
    program = "import sys, pipeline.graph; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
