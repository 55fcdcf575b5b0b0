"""Many images: listed, segmented by several processes or a cluster, recorded line by line, gone on with after any stop.

``segment_cohort(inputs, output, settings=..., jobs=...)`` is what ``msformer-fast segment FOLDER`` calls; see
``docs/cohorts.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.cohort.job import Options
    from msformer_fast.cohort.run import Summary, segment_cohort

__all__ = ["Options", "Summary", "segment_cohort"]


def __getattr__(name: str) -> Any:
    # The command line reads its options from here without loading what a run needs.
    if name == "Options":
        from msformer_fast.cohort.job import Options

        return Options
    if name in __all__:
        from msformer_fast.cohort import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
