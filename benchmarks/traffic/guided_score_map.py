"""Bytes of the kernels of the head with what its losses read: those of the score map and of the patch embedding."""

from __future__ import annotations

import torch

from msformer_fast.benchmarks.case import Sizes
from msformer_fast.benchmarks.traffic import Kernels, patch_embedding, score_map


def of_call(sizes: Sizes, dtype: torch.dtype, multiprocessors: int, target: str | None) -> dict[str, Kernels]:
    """Of the call that ``benchmarks/guided_score_map.py`` times: no batch norm of the maps, all gathered."""
    side, width = sizes["side"], sizes["channels"]
    head, embed = (1, side, side, width, width, dtype), (1, width, side, side, width, sizes["patch"], dtype)
    of_head = score_map.programs_of(*head, multiprocessors, target, gather=True)
    of_patches = patch_embedding.programs_of(*embed, multiprocessors, target)
    return {
        "forward": score_map.forward(*head, norms=False, gather=True, programs=of_head["forward"])
        | patch_embedding.forward(*embed, programs=of_patches["forward"]),
        "backward": patch_embedding.backward(*embed, programs=of_patches["backward"], clustering=True)
        | score_map.backward(*head, norms=False, programs=of_head["backward"]),
    }
