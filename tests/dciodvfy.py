"""Whether DICOM Segmentations are what the standard asks for, by dciodvfy (Debian: dicom3tools) if installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

AVAILABLE = shutil.which("dciodvfy") is not None
_SEGMENTATION = b"1.2.840.10008.5.1.4.1.1.66.4"


def errors(path: Path) -> list[str]:
    """What it finds wrong; nothing where it is not installed."""
    if not AVAILABLE:
        return []
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).splitlines()
    return [line for line in said if line.startswith("Error")]


def segmentations(folder: Path) -> list[Path]:
    """The Segmentations below a folder, by the class in their first bytes."""
    files = sorted(each for each in folder.rglob("*.dcm") if each.is_file())
    return [each for each in files if _SEGMENTATION in each.read_bytes()[132:400]]


def check(folder: Path) -> int:
    """How many Segmentations a test left below its folder; each of them without an error."""
    found = segmentations(folder)
    assert {str(path): errors(path) for path in found} == {str(path): [] for path in found}
    return len(found)
