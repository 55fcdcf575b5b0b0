"""Whether a transform is at work that registered ops, and PyTorch's fused attention, know nothing of."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from msformer_fast.tracing import constant_result


@constant_result
def transformed() -> bool:
    """Whether the call runs inside ``torch.func`` (grad, vjp, jvp, vmap) or forward-mode AD.

    A registered op would raise PyTorch's error there, or drop the tangent without one. Compiled code may take the
    answer as a constant: PyTorch guards it on both.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
