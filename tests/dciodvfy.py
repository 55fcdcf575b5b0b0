"""Whether DICOM objects are what the standard asks for, by dciodvfy (Debian: dicom3tools) where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

AVAILABLE = shutil.which("dciodvfy") is not None


def errors(path: Path) -> list[str]:
    """What it finds wrong; nothing where it is not installed."""
    if not AVAILABLE:
        return []
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).splitlines()
    return [line for line in said if line.startswith("Error")]
