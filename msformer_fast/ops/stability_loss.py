"""The spatial stability loss of two patch embeddings, flash-style: no T x T matrix."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities import stability_loss as identity
from msformer_fast.limits import STABILITY_LOSS_CHANNELS
from msformer_fast.ops.backend import choose, over_limit, runs_in_strips, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.memory import will_be_differentiated
from msformer_fast.ops.precision import cast_product, input_precision
from msformer_fast.ops.registration import register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference import stability_loss as _reference

OP = "stability_loss"


def stability_loss(queries: Tensor, keys: Tensor, *, scale: float = 8.0, backend: str | None = None) -> Tensor:
    """Mean absolute difference between ``A = softmax(Q K^T / scale)`` and the identity, mean over the batch.

    A row of A sums to 1, so the loss is ``2 / T^2 * sum_i (1 - A_ii)``.

    Args:
        queries, keys: (B, T, C), floating point, any strides, T >= 1.
        scale: divisor of the scores. The authors use 8 whatever C is.
        backend: ``"triton"``, ``"native"``, ``"torch"``, ``"reference"`` or ``None`` for the fastest that can run.

    Returns:
        A scalar; float32 for half precision, else the queries' dtype.

    Raises:
        InputError: a shape or an option that does not fit, named.
        BackendError: the backend asked for cannot run this call; the message says why.

    ``"native"`` makes both gradients with the loss where they will be asked for, and keeps them; the others keep two
    numbers a patch and make the scores again. The gradient of ``"triton"`` cannot be differentiated again; that of the
    other backends can.

    Source: MS-Former, intra-scale (spatial stability) loss.
    """
    _check_pair(OP, queries, keys, scale)
    queries, keys = cast_product(queries), cast_product(keys)
    refusals = {
        "triton": lambda: _why_not_triton(queries, keys),
        "native": lambda: why_not_native(OP, queries, keys),
        "torch": lambda: why_not_torch(OP, queries, keys),
    }
    chosen = choose(OP, backend, queries.device, refusals)
    if chosen == "reference":
        return _reference.stability_loss(queries, keys, scale)
    if chosen == "torch" and not runs_in_strips(queries):
        return identity.stability_loss(queries, keys, scale)
    if chosen == "native":
        return _registered_native(queries, keys, scale, will_be_differentiated(queries, keys), chosen)[0]
    return _registered(queries, keys, scale, chosen)[0]


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


def _why_not_triton(queries: Tensor, keys: Tensor) -> str | None:
    return over_limit(OP, ("channels", queries.shape[-1], STABILITY_LOSS_CHANNELS)) or why_not_triton(OP, queries, keys)


def _forward(queries: Tensor, keys: Tensor, scale: float, backend: str) -> tuple[Tensor, ...]:
    if backend == "torch":
        return identity.stability_loss_forward(queries, keys, scale)
    from msformer_fast.kernels.stability_loss import stability_loss_forward

    return stability_loss_forward(queries, keys, scale, input_precision(queries.dtype))


def _backward(
    grad_loss: Tensor, queries: Tensor, keys: Tensor, others: Tensor, diagonal: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "torch":
        return identity.stability_loss_backward(grad_loss, queries, keys, others, diagonal, scale)
    from msformer_fast.kernels.stability_loss import stability_loss_backward

    return stability_loss_backward(queries, keys, others, diagonal, grad_loss, scale, input_precision(queries.dtype))


def _shapes(queries: Tensor) -> tuple[Tensor, ...]:
    dtype, rows = sum_dtype(queries.dtype), queries.shape[:2]
    return tuple(queries.new_empty(shape, dtype=dtype) for shape in ((), rows, rows))


_registered = register(
    OP,
    forward=_forward,
    outputs=("loss", "others", "diagonal"),
    shapes=_shapes,
    backward=_backward,
    gradients=["queries", "keys"],
    expression=identity.stability_loss,
)


def _native_forward(queries: Tensor, keys: Tensor, scale: float, keep: bool, backend: str) -> tuple[Tensor, Tensor]:
    """The loss, and if they are kept both its gradients, (2, B, T, C)."""
    from msformer_fast.kernels.native import stability_loss as native

    return native.stability_loss_forward(queries, keys, scale, keep)


def _native_backward(
    grad_loss: Tensor, queries: Tensor, keys: Tensor, gradients: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    from msformer_fast.kernels.native import stability_loss as native

    return native.stability_loss_backward(grad_loss, queries, keys, gradients, scale)


def _native_shapes(queries: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    return queries.new_empty(()), queries.new_empty((2, *queries.shape) if keep else 0)


#: An op of its own, for the other one's results are what saved graphs know.
_registered_native = register(
    f"{OP}_native",
    forward=_native_forward,
    outputs=("loss", "gradients"),
    shapes=_native_shapes,
    backward=_native_backward,
    gradients=["queries", "keys"],
    expression=identity.stability_loss,
)
