"""The cluster scores of every pixel, from the two branches."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.score_map import score_map as _reference


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
    choose("score_map", backend, fine.device, {})
    return _reference(coarse, fine, up_weight, head_weight)
