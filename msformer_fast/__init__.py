"""MS-Former, fast: unsupervised segmentation of medical images by a dual-branch, two-scale transformer.

The names below load on first use, modules too, so that ``import msformer_fast`` stays quick, needs no GPU and compiles
nothing.
"""

from __future__ import annotations

import importlib

from msformer_fast.version import __version__

TYPE_CHECKING = False  # for type checkers it is true; the module typing takes longer to import than all that is here
if TYPE_CHECKING:
    from typing import Any

    from msformer_fast import (
        cohort,
        foreground,
        formats,
        images,
        margin,
        metrics,
        nn,
        ops,
        phantom,
        process,
        profiling,
        reference,
    )
    from msformer_fast.cohort import CohortSummary, segment_cohort
    from msformer_fast.errors import BackendError, DivergenceError, InputError, OutputError
    from msformer_fast.foreground import Foreground
    from msformer_fast.formats import ImageFile
    from msformer_fast.losses import Losses, LossWeights, consistency_loss, self_guiding_losses
    from msformer_fast.margin import Margin
    from msformer_fast.metrics import MaskScores
    from msformer_fast.model import MSFormer, Scores
    from msformer_fast.nn import TwoMaps
    from msformer_fast.ops import (
        Attended,
        BatchStatistics,
        Clustering,
        GuidedScores,
        Patches,
        WeightedLosses,
        WithStatistics,
    )
    from msformer_fast.phantom import Phantom
    from msformer_fast.presets import Preset
    from msformer_fast.prompts.carry import Neighbour
    from msformer_fast.prompts.prompt import Prompt
    from msformer_fast.runs import Run
    from msformer_fast.segmentation import Segmentation, segment
    from msformer_fast.self_guiding import Guided, Iteration, self_guide
    from msformer_fast.swaps import Left, Place, Swap, Swaps, accelerate, register_swap, unregister_swap

#: Where the names are.
_HOME = {
    "Attended": "ops",
    "BackendError": "errors",
    "BatchStatistics": "ops",
    "Clustering": "ops",
    "CohortSummary": "cohort",
    "DivergenceError": "errors",
    "Foreground": "foreground",
    "Guided": "self_guiding",
    "GuidedScores": "ops",
    "ImageFile": "formats",
    "InputError": "errors",
    "Iteration": "self_guiding",
    "Left": "swaps",
    "LossWeights": "losses",
    "Losses": "losses",
    "MSFormer": "model",
    "Margin": "margin",
    "MaskScores": "metrics",
    "Neighbour": "prompts.carry",
    "OutputError": "errors",
    "Patches": "ops",
    "Phantom": "phantom",
    "Place": "swaps",
    "Preset": "presets",
    "Prompt": "prompts.prompt",
    "Run": "runs",
    "Scores": "model",
    "Segmentation": "segmentation",
    "Swap": "swaps",
    "Swaps": "swaps",
    "TwoMaps": "nn",
    "WeightedLosses": "ops",
    "WithStatistics": "ops",
    "accelerate": "swaps",
    "consistency_loss": "losses",
    "register_swap": "swaps",
    "segment": "segmentation",
    "segment_cohort": "cohort",
    "self_guide": "self_guiding",
    "self_guiding_losses": "losses",
    "unregister_swap": "swaps",
}
#: Modules that are documented: those of __all__, and some that the others speak of.
_MODULES = (
    "benchmarks",
    "cohort",
    "evaluate",
    "evaluate_prompts",
    "floors",
    "foreground",
    "formats",
    "images",
    "kernels",
    "margin",
    "metrics",
    "nn",
    "ops",
    "outputs",
    "phantom",
    "presets",
    "process",
    "profiling",
    "reference",
    "runs",
)

__all__ = [
    "Attended",
    "BackendError",
    "BatchStatistics",
    "Clustering",
    "CohortSummary",
    "DivergenceError",
    "Foreground",
    "Guided",
    "GuidedScores",
    "ImageFile",
    "InputError",
    "Iteration",
    "Left",
    "LossWeights",
    "Losses",
    "MSFormer",
    "Margin",
    "MaskScores",
    "Neighbour",
    "OutputError",
    "Patches",
    "Phantom",
    "Place",
    "Preset",
    "Prompt",
    "Run",
    "Scores",
    "Segmentation",
    "Swap",
    "Swaps",
    "TwoMaps",
    "WeightedLosses",
    "WithStatistics",
    "__version__",
    "accelerate",
    "cohort",
    "consistency_loss",
    "foreground",
    "formats",
    "images",
    "margin",
    "metrics",
    "nn",
    "ops",
    "phantom",
    "process",
    "profiling",
    "reference",
    "register_swap",
    "segment",
    "segment_cohort",
    "self_guide",
    "self_guiding_losses",
    "unregister_swap",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"msformer_fast.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"msformer_fast.{name}")
    else:
        raise AttributeError(f"module 'msformer_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
