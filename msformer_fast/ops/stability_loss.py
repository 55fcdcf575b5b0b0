"""The spatial stability loss, and the patch embedding in front of it."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError
from msformer_fast.ops.backend import choose, not_built
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference import stability_loss as _reference

_WHY_NOT = {name: not_built("stability_loss", name) for name in ("triton", "torch")}
_WHY_NOT_EMBEDDING = {name: not_built("patch_embedding", name) for name in ("triton", "torch")}


def patch_embedding(
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    patch: int = 32,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of the stability loss: patches of the batch-normed logits, one diagonal step apart.

    Queries are cut from the map without its first row and column, keys from the map without its last row and
    column, both into ``T = ((H - 1) // patch) * ((W - 1) // patch)`` patches in row order; what is left at the
    far edge is cropped. A patch is flattened in the order (row, column, cluster) and projected.

    Args:
        logits: (B, K, H, W), floating point, any strides; H and W at least ``patch + 1``.
        weight: (C, patch * patch * K); bias: (C) or ``None``. Shared by queries and keys.
        norm_weight, norm_bias: (K) or ``None``, the batch norm's affine parameters.
        running_mean, running_var: (K) or ``None``; updated in place when ``training``, used when not.
        patch: side of a patch in pixels.
        training: normalise by the batch's own statistics.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        queries and keys, both (B, T, C).

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, intra-scale loss; the authors' ``bn3`` and ``to_patch_embedding``.
    """
    if patch < 1:
        raise InputError(f"patch_embedding: patch must be at least 1 pixel, got {patch}")
    shapes = Shapes("patch_embedding")
    shapes("logits", logits, "B K H W")
    shapes("weight", weight, "C L")
    shapes("bias", bias, "C")
    shapes("norm_weight", norm_weight, "K")
    shapes("norm_bias", norm_bias, "K")
    shapes("running_mean", running_mean, "K")
    shapes("running_var", running_var, "K")
    if min(shapes["H"], shapes["W"]) < patch + 1:
        raise InputError(
            f"patch_embedding: logits must be at least patch + 1 = {patch + 1} pixels high and wide; "
            f"got {shapes['H']} x {shapes['W']}"
        )
    if shapes["L"] != patch * patch * shapes["K"]:
        raise InputError(
            f"patch_embedding: weight must be (C, patch * patch * K) = (C, {patch * patch * shapes['K']}); "
            f"got {tuple(weight.shape)}"
        )
    if not training and (running_mean is None or running_var is None):
        raise InputError("patch_embedding: training=False needs running_mean and running_var")
    choose("patch_embedding", backend, _WHY_NOT_EMBEDDING)
    return _reference.patch_embedding(
        logits,
        weight,
        bias,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        patch,
        training,
        momentum,
        eps,
    )


def stability_loss(queries: Tensor, keys: Tensor, *, scale: float = 8.0, backend: str | None = None) -> Tensor:
    """Mean absolute difference between ``A = softmax(Q K^T / scale)`` and the identity, mean over the batch.

    A row of A sums to 1, so the loss is ``2 / T^2 * sum_i (1 - A_ii)``.

    Args:
        queries, keys: (B, T, C), floating point, any strides, T >= 1.
        scale: divisor of the scores. The authors use 8 whatever C is.
        backend: ``"triton"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        scalar.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: MS-Former, intra-scale (spatial stability) loss.
    """
    _check_pair("stability_loss", queries, keys, scale)
    choose("stability_loss", backend, _WHY_NOT)
    return _reference.stability_loss(queries, keys, scale)


def stability_attention(queries: Tensor, keys: Tensor, *, scale: float = 8.0) -> Tensor:
    """The attention ``softmax(Q K^T / scale)`` itself, (B, T, T): slow and large, for people who want to look.

    Arguments and errors as for :func:`stability_loss`, which never builds this matrix in its fast forms.
    """
    _check_pair("stability_attention", queries, keys, scale)
    return _reference.stability_attention(queries, keys, scale)


def _check_pair(op: str, queries: Tensor, keys: Tensor, scale: float) -> None:
    shapes = Shapes(op)
    shapes("queries", queries, "B T C")
    shapes("keys", keys, "B T C")
    if shapes["T"] < 1:
        raise InputError(f"{op}: queries must hold at least one patch, got {tuple(queries.shape)}")
    if not scale > 0:
        raise InputError(f"{op}: scale must be positive, got {scale}")
