"""Modules of a user's own model swapped for ones that compute the same, faster."""

from msformer_fast.swaps.registry import register_swap, unregister_swap
from msformer_fast.swaps.report import Left, Place, Swap, Swaps
from msformer_fast.swaps.search import accelerate

__all__ = ["Left", "Place", "Swap", "Swaps", "accelerate", "register_swap", "unregister_swap"]
