"""How a person calls this program.

Imports nothing heavy: the command line asks before it knows what it will do.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program_text() -> str:
    """Return how this program is called from where the person is: it may not be on the path."""
    if shutil.which("motion-tokens"):
        return "motion-tokens"
    beside = Path(sys.executable).with_name("motion-tokens")
    return shlex.quote(os.path.relpath(beside)) if beside.exists() else "python -m jobs.cli"
