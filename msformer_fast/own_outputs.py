"""Files that this package wrote, told from images that are to be segmented."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import Any

#: What follows an image's name in those of its outputs.
ENDINGS: tuple[str, ...] = ("_mask.png", "_labels.png", "_overlay.png", ".json", "_mask", "_labels")
ENDINGS += ("_mask.nii.gz", "_labels.nii.gz", "_mask.dcm")
#: In the output folder of a run: its settings.
SETTINGS = "cohort.json"
# What belongs to a record of ours by other names: of ``demo``, and of ``evaluate``.
_MORE = ("_panel.png", "_truth.png")
_EVALUATION = {"contact_sheet.png": "evaluation.json"}
_LARGEST = 200 * 10**6


def is_output(path: str) -> bool:
    """Whether a file or folder is an output of this package: named as one, beside the record that goes with it.

    Files of others that are called the same, without such a record, are none.
    """
    folder, name = os.path.split(path)
    if name in _EVALUATION:
        return {"summary", "settings"} <= _keys(os.path.join(folder, _EVALUATION[name]))
    return any(
        name.endswith(ending) and _is_record(os.path.join(folder, name.removesuffix(ending) + ".json"))
        for ending in (*ENDINGS, *_MORE)
    )


def is_run(folder: str) -> bool:
    """Whether a folder is the output folder of a run over many images."""
    return {"version", "axis", "too_large"} <= _keys(os.path.join(folder, SETTINGS))


def _is_record(path: str) -> bool:
    keys = _keys(path)
    return "image" in keys and ({"foreground", "network_size"} <= keys or {"slices", "confidence"} <= keys)


def _keys(path: str) -> frozenset[str]:
    """Of the JSON object in a file; none where it holds another thing."""
    try:
        found = os.stat(path)
    except OSError:
        return frozenset()
    return _keys_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)  # an image's outputs follow each other in a folder
def _keys_of(path: str, size: int, time: int) -> frozenset[str]:
    try:
        if size > _LARGEST:
            return frozenset()
        with open(path, encoding="utf-8") as file:
            found: Any = json.load(file)
    except (OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(found) if isinstance(found, dict) else frozenset()
