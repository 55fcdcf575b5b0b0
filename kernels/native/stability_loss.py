"""Launchers of the CPU kernel of the stability loss."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.kernels.native.library import run


def stability_loss_forward(queries: Tensor, keys: Tensor, scale: float, differentiate: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradients, (2, B, T, C), by queries and keys; empty unless asked for."""
    (batch, patches, channels), loss = queries.shape, queries.new_empty(())
    gradients = queries.new_empty((2, *queries.shape) if differentiate else 0)
    d_queries, d_keys = gradients if differentiate else (None, None)
    run(
        "stability_loss",
        queries=queries.contiguous(), keys=keys.contiguous(), batch=batch, patches=patches, channels=channels,
        scale=scale, loss=loss, d_queries=d_queries, d_keys=d_keys,
    )  # fmt: skip
    return loss, gradients


def stability_loss_backward(
    grad: Tensor, queries: Tensor, keys: Tensor, gradients: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys, from those of the loss that the forward kept, or made here."""
    if not gradients.numel():
        _, gradients = stability_loss_forward(queries, keys, scale, True)
    d_queries, d_keys = gradients.unbind()
    return d_queries * grad, d_keys * grad
