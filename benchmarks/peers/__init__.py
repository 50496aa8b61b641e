"""Programs of what versolog is measured beside, each run by a Python that has it, and whether there is one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DIRECTORY = Path(__file__).parent
PEERS_PYTHON = "VERSOLOG_PEERS_PYTHON"
"""The environment variable that names the Python which they are installed for."""


def python_of_peers(module: str) -> str | None:
    """The Python that has the module; None where there is none."""
    python = os.environ.get(PEERS_PYTHON)
    if python is None:
        return None
    found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return python if found.returncode == 0 else None
