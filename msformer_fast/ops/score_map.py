"""The cluster scores of every pixel, from the two branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.identities import score_map as identity
from msformer_fast.limits import SCORE_MAP_CHANNELS
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.batch_norm import BatchNorm, check_batch_norm, native_norm, norm_gradients, through
from msformer_fast.ops.precision import cast_product, kernel_precision
from msformer_fast.ops.registration import contiguous_like, register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.score_map import score_map as _reference

if TYPE_CHECKING:
    from msformer_fast.kernels.score_map import MapNorm

OP = "score_map"


def score_map(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    *,
    coarse_norm: BatchNorm | None = None,
    fine_norm: BatchNorm | None = None,
    backend: str | None = None,
) -> Tensor:
    """``logits = head(concat[upsample(coarse), fine])``.

    ``upsample`` maps each coarse token to 4C channels in the order (p1, p2, c) and moves them to space: token
    (h, w) fills the pixels (2h + p1, 2w + p2). Rows and columns beyond the fine map are cropped.

    Args:
        coarse: (B, ceil(H / 2), ceil(W / 2), C), floating point, any strides.
        fine: (B, H, W, C).
        up_weight: (4C, C).
        head_weight: (K, 2C), the coarse branch's columns first.
        coarse_norm, fine_norm: batch norms through which the maps are read, or ``None``. The kernels, ``"native"`` too,
            apply them where they read, with no pass of their own; the other backends apply them first.
        backend: ``"triton"`` (C at most 256), ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest
            that can run.

    Returns:
        logits (B, H, W, K).

    Raises:
        InputError: a shape that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    The gradient of ``"triton"`` cannot be differentiated again; that of the other backends can.

    Source: MS-Former, section "Multi-scale representation"; the authors' ``linear_up`` and ``linear_down``.
    """
    check_shapes(OP, coarse, fine, up_weight, head_weight, coarse_norm, fine_norm)
    coarse, fine = cast_product(coarse), cast_product(fine)
    up_weight, head_weight = cast_product(up_weight), cast_product(head_weight)
    given = coarse, fine, up_weight, head_weight
    refusals = {
        "triton": lambda: why_not(OP, *given),
        "native": lambda: why_not_native(OP, *given, *(coarse_norm or ())[:2], *(fine_norm or ())[:2]),
        "torch": lambda: why_not_torch(OP, *given),
    }
    chosen = choose(OP, backend, fine.device, refusals)
    if chosen in ("triton", "native"):
        return _registered(*given, coarse_norm, fine_norm, chosen)
    coarse, fine = cast_product(through(coarse_norm, coarse)), cast_product(through(fine_norm, fine))
    if chosen == "reference":
        return _reference(coarse, fine, up_weight, head_weight)
    if runs_in_strips(fine):
        return _registered(coarse, fine, up_weight, head_weight, None, None, chosen)
    return identity.score_map(coarse, fine, up_weight, head_weight)


def check_shapes(
    op: str,
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
) -> Shapes:
    """Sizes of a head's call, by name.

    Raises:
        InputError: a shape that does not fit, named.
    """
    shapes = Shapes(op)
    shapes("fine", fine, "B H W C")
    shapes("coarse", coarse, "B Hc Wc C")
    shapes("up_weight", up_weight, "4C C")
    shapes("head_weight", head_weight, "K 2C")
    for name, norm in (("coarse_norm", coarse_norm), ("fine_norm", fine_norm)):
        check_batch_norm(shapes, name, norm)
    height, width, channels = shapes["H"], shapes["W"], shapes["C"]
    # Rounded up as a convolution writes its size, which torch.export cannot prove the same as (H + 1) // 2.
    half_height, half_width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
    if (shapes["Hc"], shapes["Wc"]) != (half_height, half_width):
        raise InputError(
            f"{op}: coarse must be ceil(H / 2) x ceil(W / 2) = {half_height} x {half_width} "
            f"for fine of {height} x {width}; got {shapes['Hc']} x {shapes['Wc']}"
        )
    if shapes["4C"] != 4 * channels or shapes["2C"] != 2 * channels:
        raise InputError(
            f"{op}: up_weight must be (4C, C) and head_weight (K, 2C) with C = {channels}; "
            f"got {tuple(up_weight.shape)} and {tuple(head_weight.shape)}"
        )
    return shapes


def why_not(op: str, *given: Tensor) -> str | None:
    """Why the kernels cannot run on coarse, fine and their weights, or ``None``."""
    return over_limit(op, ("channels", given[0].shape[-1], SCORE_MAP_CHANNELS)) or why_not_triton(op, *given)


def map_norm(norm: BatchNorm | None) -> MapNorm | None:
    """A batch norm as the kernels' launchers take it."""
    from msformer_fast.kernels.score_map import MapNorm

    return None if norm is None else MapNorm(*norm)


def _forward(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    backend: str,
) -> Tensor:
    if backend == "torch":
        return identity.score_map_forward(coarse, fine, up_weight, head_weight)
    if backend == "native":
        from msformer_fast.kernels.native import score_map as native

        norms_read = native_norm(coarse_norm), native_norm(fine_norm)
        return native.score_map_forward(coarse, fine, up_weight, head_weight, *norms_read)
    from msformer_fast.kernels.score_map import score_map_forward

    norms = map_norm(coarse_norm), map_norm(fine_norm)
    return score_map_forward(coarse, fine, up_weight, head_weight, *norms, kernel_precision(fine.dtype, fine.device))[0]


def _backward(
    grad_logits: Tensor,
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    backend: str,
) -> tuple[Tensor | list[Tensor], ...]:
    """Gradients of the maps and weights, and of each batch norm's weight and bias."""
    given = grad_logits, coarse, fine, up_weight, head_weight
    if backend == "torch":
        return *identity.score_map_backward(*given), [], []
    if backend == "native":
        from msformer_fast.kernels.native import score_map as native

        made = native.score_map_backward(*given, native_norm(coarse_norm), native_norm(fine_norm))
        return *made[:4], norm_gradients(made.coarse_norm, coarse_norm), norm_gradients(made.fine_norm, fine_norm)
    from msformer_fast.kernels.score_map import score_map_backward

    found = score_map_backward(
        *given, map_norm(coarse_norm), map_norm(fine_norm), kernel_precision(fine.dtype, fine.device)
    )
    return *found[:4], [*(found.coarse_norm or ())], [*(found.fine_norm or ())]


def _gradient_shapes(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
    backend: str,
) -> tuple[Tensor | list[Tensor], ...]:
    like = torch.empty_like if backend == "torch" else contiguous_like
    weights = contiguous_like(up_weight), contiguous_like(head_weight)
    return like(coarse), like(fine), *weights, *norms_like(coarse_norm, fine_norm)


def norms_like(*norms: BatchNorm | None) -> list[list[Tensor]]:
    """Results of :func:`norm_gradients`, empty."""
    return [[] if norm is None else [contiguous_like(norm.weight), contiguous_like(norm.bias)] for norm in norms]


def _expression(
    coarse: Tensor,
    fine: Tensor,
    up_weight: Tensor,
    head_weight: Tensor,
    coarse_norm: BatchNorm | None,
    fine_norm: BatchNorm | None,
) -> Tensor:
    return identity.score_map(through(coarse_norm, coarse), through(fine_norm, fine), up_weight, head_weight)


_registered = register(
    OP,
    forward=_forward,
    outputs=["logits"],
    shapes=lambda fine, head_weight: fine.new_empty((*fine.shape[:3], head_weight.shape[0])),
    backward=_backward,
    gradients=["coarse", "fine", "up_weight", "head_weight", "coarse_norm", "fine_norm"],
    gradient_shapes=_gradient_shapes,
    expression=_expression,
)
