"""The cluster scores of every pixel, from the two branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.identities import score_map as identity
from msformer_fast.ops.backend import choose, runs_in_strips, why_not_torch
from msformer_fast.ops.double_backward import differentiable_gradients, wants_double_backward
from msformer_fast.ops.launch import in_strips
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.score_map import score_map as _reference

OP = "score_map"


def score_map(
    coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor, *, backend: str | None = None
) -> Tensor:
    """``logits = head(concat[upsample(coarse), fine])``.

    ``upsample`` maps each coarse token to 4C channels in the order (p1, p2, c) and moves them to space: token
    (h, w) fills the pixels (2h + p1, 2w + p2). Rows and columns beyond the fine map are cropped.

    Args:
        coarse: (B, ceil(H / 2), ceil(W / 2), C), floating point, any strides.
        fine: (B, H, W, C).
        up_weight: (4C, C).
        head_weight: (K, 2C), the coarse branch's columns first.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        logits (B, H, W, K).

    Raises:
        InputError: a shape that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, section "Multi-scale representation"; the authors' ``linear_up`` and ``linear_down``.
    """
    shapes = Shapes("score_map")
    shapes("fine", fine, "B H W C")
    shapes("coarse", coarse, "B Hc Wc C")
    shapes("up_weight", up_weight, "4C C")
    shapes("head_weight", head_weight, "K 2C")
    height, width, channels = shapes["H"], shapes["W"], shapes["C"]
    if (shapes["Hc"], shapes["Wc"]) != ((height + 1) // 2, (width + 1) // 2):
        raise InputError(
            f"score_map: coarse must be ceil(H / 2) x ceil(W / 2) = {(height + 1) // 2} x {(width + 1) // 2} "
            f"for fine of {height} x {width}; got {shapes['Hc']} x {shapes['Wc']}"
        )
    if shapes["4C"] != 4 * channels or shapes["2C"] != 2 * channels:
        raise InputError(
            f"score_map: up_weight must be (4C, C) and head_weight (K, 2C) with C = {channels}; "
            f"got {tuple(up_weight.shape)} and {tuple(head_weight.shape)}"
        )
    given = coarse, fine, up_weight, head_weight
    chosen = choose(OP, backend, fine.device, {"torch": lambda: why_not_torch(OP, *given)})
    if chosen == "reference":
        return _reference(*given)
    return _forward(*given) if runs_in_strips(fine) else identity.score_map(*given)


@torch.library.custom_op("msformer_fast::score_map", mutates_args=())
def _forward(coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor) -> Tensor:
    with in_strips("score_map.forward", fine):
        return identity.score_map_forward(coarse, fine, up_weight, head_weight)


@_forward.register_fake
def _(coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor) -> Tensor:
    return fine.new_empty((*fine.shape[:3], head_weight.shape[0]))


@torch.library.custom_op("msformer_fast::score_map_backward", mutates_args=())
def _backward(
    grad: Tensor, coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with in_strips("score_map.backward", fine):
        return identity.score_map_backward(grad, coarse, fine, up_weight, head_weight)


@_backward.register_fake
def _(
    grad: Tensor, coarse: Tensor, fine: Tensor, up_weight: Tensor, head_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weights = up_weight.new_empty(up_weight.shape), head_weight.new_empty(head_weight.shape)
    return torch.empty_like(coarse), torch.empty_like(fine), *weights


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if wants_double_backward():
        found = differentiable_gradients(lambda *given: (identity.score_map(*given),), ctx.saved_tensors, [grad])
        return tuple(found)
    return _backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
