"""Many images: listed, segmented by several processes or a cluster, recorded line by line, gone on with after any stop.

:func:`msformer_fast.segment_cohort` is what ``msformer-fast segment FOLDER`` calls; see ``docs/how-to/folder.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.cohort.python import segment_cohort
    from msformer_fast.cohort.summary import CohortSummary

__all__ = ["CohortSummary", "segment_cohort"]

_HOME = {"CohortSummary": "summary", "segment_cohort": "python"}


def __getattr__(name: str) -> Any:
    # The command line reads its options from here without loading what a run needs.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
