"""Windowed attention of one feature map or volume to another of another size, or to itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from msformer_fast.dtypes import sum_dtype
from msformer_fast.errors import InputError
from msformer_fast.identities.cross_scale_attention import cross_scale_attention as _identity
from msformer_fast.limits import CROSS_SCALE_ATTENTION_HEAD_DIM
from msformer_fast.ops.backend import choose, over_limit, why_not_native, why_not_torch, why_not_triton
from msformer_fast.ops.precision import cast_product, input_precision, seen_by_products
from msformer_fast.ops.registration import contiguous_like, register
from msformer_fast.ops.shapes import Shapes
from msformer_fast.reference.cross_scale_attention import cross_scale_attention as _reference
from msformer_fast.windows import ONE_ROW, Windows, windows_of

OP = "cross_scale_attention"


def cross_scale_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    window: int | Sequence[int],
    halo: int | Sequence[int] = 0,
    shift: int | Sequence[int] = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
    *,
    outside: str = "ignore",
    order: str = "pad_roll",
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    seam: float = -math.inf,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    r"""Queries of one map attend, in windows, to the keys of another that cover the same area.

    A map has one to three axes: (B, W, heads, d), (B, H, W, heads, d) or, a volume, (B, D, H, W, heads, d). Below H, W
    stand for all of them, and everything holds axis by axis.

    On each axis the ratio r = keys / queries is 1, 1/2, 2, 1/4 or 4 where either size is the other's, times r, rounded
    up (257 rows and 129 have r = 1/2, the last key row covering one query row); else the two sizes' own. A window of
    w query rows covers w r key rows, which must be whole. With window 4, ratio 1/2 and halo 1, the second window of a
    row and what it sees::

        queries   . . . . | 4 5 6 7 | . . . .        4 queries
        keys       .   . [.|  2   3 |.]  .   .       2 keys, and 1 of the halo on each side

    Equal sizes without halo are the (shifted) window attention of Swin, W-MSA and SW-MSA; with three axes that of Video
    Swin and Swin UNETR.

    Args:
        q: (B, Hq, Wq, heads, d), or with ``k`` and ``v`` ``None`` queries, keys and values of one map in one tensor,
            (B, H, W, 3, heads, d). A map of other axes has its sizes in place of H, W.
        k: (B, Hk, Wk, heads, d), or with ``v`` ``None`` keys and values in one tensor, (B, Hk, Wk, 2, heads, d).
        v: (B, Hk, Wk, heads, d). All three floating point, of any strides: they are read in place (``"native"`` copies
            those that are not contiguous, ``"triton"`` volumes whose depth and height are not evenly spaced in memory,
            as cropped ones). The gradient of a packed tensor is written packed.
        window: queries a side of a window. An integer, or one of each axis as ([[depth,] height,] width), as ``halo``
            and ``shift``.
        halo: keys by which a window's keys are widened on every side, cut where the (rolled, padded) map ends.
        shift: query rows by which both maps are rolled, upwards and to the left, before they are cut into windows; less
            than the window, and a whole number of key rows.
        scale: of the scores, default ``d ** -0.5``.
        bias: added to the scores: (heads, queries of a window, keys of a window), halo included; or a table of relative
            positions, (entries, heads), whose entry for a query and a key is, with r = p / q in lowest terms, numbered
            ``p * query row - q * key row`` on each axis, from the lowest, the first axis first. At equal sizes it is
            Swin's table of (2 window - 1) entries to the power of the axes, in its order.
        outside: what becomes of positions outside the map, where sizes do not divide and in the halo. ``"ignore"``: no
            query sees them. ``"pad"``: they take part, with key ``pad_k`` and value ``pad_v``, as where a map is
            padded before its projection.
        order: ``"pad_roll"``: the maps are padded to whole windows, then rolled (MONAI); two scales stay aligned.
            ``"roll_pad"``: rolled, then padded (timm); a coarse map that was rounded up is half a pixel off beyond the
            seam, and a query there may see no key.
        pad_k, pad_v: (heads, d), with ``outside="pad"``; ``None`` for zeros.
        seam: added to the score of a query and a key that the roll brought together from opposite edges. The default
            hides them from each other; timm and MONAI add -100. As in Swin's mask the seam lies ``shift`` rows before
            the end of the padded map; with ``"roll_pad"`` and ``"ignore"`` it lies where the rows meet.
        dropout: must be 0.
        backend: ``"triton"`` (d at most 128), ``"native"``, ``"torch"`` (PyTorch's fused attention,
            windows copied out of the maps and back; its gradients can be differentiated again where the fused
            attention's can), ``"reference"`` (one window after the other) or ``None`` for the fastest that can run.

    Returns:
        (B, Hq, Wq, heads, d), as the queries, contiguous, in the dtype of ``q``. A query that sees no key gets zeros,
        and gives no gradient.

    Raises:
        InputError: a shape or an option that does not fit, named; for a window that covers no whole number of keys
            the nearest that do.
        BackendError: the backend asked for cannot run this call; the message says why.

    Source: Liu et al., "Swin Transformer", ICCV 2021, section 3.2, for equal sizes, and Liu et al., "Video Swin
    Transformer", CVPR 2022, for three axes; keys of another scale are this package's own.
    """
    shapes = Shapes(OP)
    maps, sizes = _check_maps(shapes, q, k, v)
    width = shapes["d"]
    windows = windows_of(OP, *sizes, window, halo, shift, outside, order)
    _check_bias(shapes, bias, windows)
    shapes("pad_k", pad_k, "heads d")
    shapes("pad_v", pad_v, "heads d")
    if outside != "pad" and (pad_k is not None or pad_v is not None):
        raise InputError(f'{OP}: pad_k and pad_v need outside="pad"; pass None for both')
    if dropout != 0:
        raise InputError(
            f"{OP}: dropout must be 0, got {dropout}: attention probabilities are not dropped out by any backend; "
            "drop out the result instead"
        )
    if not seam < math.inf:
        raise InputError(f"{OP}: seam must be a number below infinity, or -infinity; got {seam}")
    scale = width**-0.5 if scale is None else float(scale)
    refusals = {
        "triton": lambda: _why_not_triton(width, maps, bias, pad_k, pad_v),
        "native": lambda: why_not_native(OP, *maps, bias, pad_k, pad_v),
        "torch": lambda: why_not_torch(OP, *maps, bias, pad_k, pad_v),
    }
    chosen = choose(OP, backend, q.device, refusals)
    # PyTorch's fused attention of no image at all leaves the bias without a gradient.
    if chosen == "reference" or (chosen == "torch" and not q.shape[0]):
        return _reference(*_unpacked(maps), windows, scale, seam, bias, pad_k, pad_v)
    maps, pad_k, pad_v = [cast_product(value) for value in maps], cast_product(pad_k), cast_product(pad_v)
    if chosen == "torch":
        return _identity(*_unpacked(maps), windows, scale, seam, bias, pad_k, pad_v)
    is_row = len(windows.axes) == 1  # the kernels know two axes and three
    if is_row:
        maps = [value.unsqueeze(1) for value in maps]
    axes = (ONE_ROW, *windows.axes) if is_row else windows.axes
    sides = [axis.window for axis in axes], [axis.halo for axis in axes], [axis.shift for axis in axes]
    found = _registered(maps, bias, pad_k, pad_v, Options(*sides, scale, float(seam), outside, order), chosen)[0]
    return found.squeeze(1) if is_row else found


def _check_maps(
    shapes: Shapes, q: Tensor, k: Tensor | None, v: Tensor | None
) -> tuple[list[Tensor], tuple[Sequence[int], Sequence[int]]]:
    """The tensors that hold the maps, as they were given; sizes of the queries' and of the keys' map."""
    if k is None and v is not None:
        raise InputError(f"{OP}: k is None and v is not; pass both, or neither with q as (B, H, W, 3, heads, d)")
    packed = "3, " if k is None else ""
    axes = q.ndim - len(f"B {packed}heads d".split()) if isinstance(q, Tensor) else 2
    if axes not in (1, 2, 3) or (packed and isinstance(q, Tensor) and q.shape[-3] != 3):
        got = tuple(q.shape)
        raise InputError(f"{OP}: q must have shape (B, [[D,] H,] W, {packed}heads, d), got {got}")
    names = ("D", "H", "W")[-axes:]
    if k is None:
        shapes("q", q, " ".join(("B", *names, "3 heads d")))
        sizes = [shapes[name] for name in names]
        return [q], (sizes, sizes)

    of_keys = " ".join(("B", *(f"{name}k" for name in names)))
    shapes("q", q, " ".join(("B", *names, "heads d")))
    if v is None:
        shapes("k", k, f"{of_keys} 2 heads d")
        maps = [q, k]
    else:
        shapes("k", k, f"{of_keys} heads d")
        shapes("v", v, f"{of_keys} heads d")
        maps = [q, k, v]
    return maps, ([shapes[name] for name in names], [shapes[f"{name}k"] for name in names])


def _check_bias(shapes: Shapes, bias: Tensor | None, windows: Windows) -> None:
    """A table or a dense bias, of the size that these windows have."""
    if isinstance(bias, Tensor) and bias.ndim == 2:
        if bias.shape[0] != windows.table:
            raise InputError(
                f"{OP}: a bias table must have {windows.table} entries for these windows, halo and ratio; "
                f"got {tuple(bias.shape)}"
            )
        shapes("bias", bias, "entries heads")
    else:
        shapes("bias", bias, f"heads {windows.queries} {windows.keys}")


def _unpacked(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views."""
    if len(maps) == 3:
        q, k, v = maps
    elif len(maps) == 2:
        q, (k, v) = maps[0], maps[1].unbind(-3)
    else:
        q, k, v = maps[0].unbind(-3)
    return q, k, v


def _why_not_triton(width: int, maps: list[Tensor], bias: Tensor | None, *pads: Tensor | None) -> str | None:
    """A bias may have a dtype of its own: under autocast it is a parameter beside activations."""
    refusal = over_limit(OP, ("channels a head", width, CROSS_SCALE_ATTENTION_HEAD_DIM))
    if refusal is not None:
        return refusal
    return why_not_triton(OP, *seen_by_products(*maps, *pads)) or (None if bias is None else why_not_triton(OP, bias))


class Options(NamedTuple):
    """The plain values of a call; sides as ([depth,] height, width)."""

    window: Sequence[int]
    halo: Sequence[int]
    shift: Sequence[int]
    scale: float
    seam: float
    outside: str
    order: str

    def windows(self, q: Tensor, k: Tensor) -> Windows:
        sides = self.window, self.halo, self.shift
        return windows_of(OP, q.shape[1:-2], k.shape[1:-2], *sides, self.outside, self.order)


def _forward(
    maps: Sequence[Tensor],
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    options: Options,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The result, and for the backward what the softmax came to, of the shape that :func:`_shapes` says."""
    q, k, v = _unpacked(maps)
    shape = options.windows(q, k), options.scale, options.seam
    if backend == "native":
        from msformer_fast.kernels.native import cross_scale_attention as native

        return native.cross_scale_attention_forward(maps, *shape, bias, pad_k, pad_v)
    from msformer_fast.kernels.cross_scale_attention import cross_scale_attention_forward

    return cross_scale_attention_forward(q, k, v, *shape, bias, pad_k, pad_v, input_precision(q.dtype))


def _backward(
    grad_y: Tensor,
    maps: Sequence[Tensor],
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    y: Tensor,
    lse: Tensor,
    options: Options,
    backend: str,
) -> list[Tensor | None]:
    """Gradients of the maps, as they were given, and of bias, pad_k and pad_v."""
    q, k, v = _unpacked(maps)
    shape = options.windows(q, k), options.scale, options.seam
    if backend == "native":
        from msformer_fast.kernels.native import cross_scale_attention as native

        return native.cross_scale_attention_backward(grad_y, maps, *shape, bias, pad_k, pad_v, y, lse)
    from msformer_fast.kernels.cross_scale_attention import cross_scale_attention_backward

    d_maps = [contiguous_like(value) for value in maps]
    found = cross_scale_attention_backward(
        grad_y, q, k, v, y, lse, *shape, bias, pad_k, pad_v, input_precision(q.dtype), into=_unpacked(d_maps)
    )
    return [*d_maps, found.bias, found.pad_k, found.pad_v]


def _shapes(maps: Sequence[Tensor], backend: str) -> tuple[Tensor, Tensor]:
    q, _, _ = _unpacked(maps)
    batch, *sizes, heads, _ = q.shape
    # Logarithms of the sums of powers of 2; on the CPU the largest score and 1 / the sum, which maps find again.
    sums: tuple[int, ...] = (batch, heads, *sizes)
    if backend == "native":
        sums = (2, *sums) if len(sizes) == 3 else (0,)
    return contiguous_like(q), q.new_empty(sums, dtype=sum_dtype(q.dtype))


def _expression(
    maps: Sequence[Tensor],
    bias: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    options: Options,
) -> Tensor:
    """Of operators that can be differentiated again, which PyTorch's fused attention cannot."""
    q, k, v = _unpacked(maps)
    with sdpa_kernel(SDPBackend.MATH):
        return _identity(q, k, v, options.windows(q, k), options.scale, options.seam, bias, pad_k, pad_v)


_registered = register(
    OP,
    forward=_forward,
    outputs=("y", "lse"),
    shapes=_shapes,
    backward=_backward,
    gradients=["maps bias pad_k pad_v"],
    expression=_expression,
)
