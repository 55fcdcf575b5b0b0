"""Many images: listed, segmented by several processes or a cluster, recorded line by line, gone on with after any stop.

:func:`msformer_fast.segment_cohort` is what ``msformer-fast segment FOLDER`` calls; see ``docs/cohorts.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msformer_fast.cohort.python import segment_cohort
    from msformer_fast.cohort.run import CohortSummary

__all__ = ["CohortSummary", "segment_cohort"]


def __getattr__(name: str) -> Any:
    # The command line reads its options from here without loading what a run needs.
    if name == "CohortSummary":
        from msformer_fast.cohort.run import CohortSummary

        return CohortSummary
    if name == "segment_cohort":
        from msformer_fast.cohort.python import segment_cohort

        return segment_cohort
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
