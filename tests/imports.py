"""What a piece of code imports, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def imported_by(code: str) -> set[str]:
    """The names of all modules that are loaded once `code` has run."""
    told = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
