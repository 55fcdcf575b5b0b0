"""MS-Former, fast: unsupervised segmentation of medical images by a dual-branch, two-scale transformer.

The names below load on first use, so that ``import msformer_fast`` stays quick, needs no GPU and compiles nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BackendError": "errors",
    "DivergenceError": "errors",
    "InputError": "errors",
    "LossWeights": "losses",
    "Swaps": "swaps",
    "accelerate": "swaps",
    "consistency_loss": "losses",
    "self_guiding_losses": "losses",
    "MSFormer": "model",
    "Segmentation": "segmentation",
    "segment": "segmentation",
    "register_swap": "swaps",
    "self_guide": "self_guiding",
    "unregister_swap": "swaps",
}
_MODULES = ("foreground", "metrics", "nn", "ops", "phantom", "reference")

__all__ = [
    "BackendError",
    "DivergenceError",
    "InputError",
    "LossWeights",
    "MSFormer",
    "Segmentation",
    "Swaps",
    "__version__",
    "accelerate",
    "consistency_loss",
    "foreground",
    "metrics",
    "nn",
    "ops",
    "phantom",
    "reference",
    "register_swap",
    "segment",
    "self_guide",
    "self_guiding_losses",
    "unregister_swap",
]

if TYPE_CHECKING:
    from msformer_fast import foreground, metrics, nn, ops, phantom, reference
    from msformer_fast.errors import BackendError, DivergenceError, InputError
    from msformer_fast.losses import LossWeights, consistency_loss, self_guiding_losses
    from msformer_fast.model import MSFormer
    from msformer_fast.segmentation import Segmentation, segment
    from msformer_fast.self_guiding import self_guide
    from msformer_fast.swaps import Swaps, accelerate, register_swap, unregister_swap


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
