"""Mix-FFN through its identities: an expression for autograd, and strips of rows for the CPU.

In strips the hidden activations (4C channels) are computed, convolved, normed, projected while they are in the cache.
The backward finds them kept (``keep``) or recomputes them; the rest is always recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msformer_fast.dtypes import sum_dtype
from msformer_fast.identities.parameters import add_to, cast_all, cast_like, zeros_like_all
from msformer_fast.identities.strips import HaloRows, layer_norm, layer_norm_backward, rows_of_a_strip, strips


class Parameters(NamedTuple):
    """Every weight of the op, as its public function names them."""

    fc1_weight: Tensor
    fc1_bias: Tensor | None
    depthwise_weight: Tensor
    depthwise_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    inner_norm_weight: Tensor | None
    inner_norm_bias: Tensor | None


class Options(NamedTuple):
    """Every option of the op, as its public function names them."""

    norm: bool
    inner_norm: bool
    inner_skip: bool
    residual: bool
    eps: float


def mix_ffn(t: Tensor, parameters: Parameters, options: Options) -> Tensor:
    """See :func:`msformer_fast.ops.mix_ffn`. The convolution reads the channels-last map as it lies in memory."""
    p = parameters
    z = F.layer_norm(t, t.shape[-1:], p.norm_weight, p.norm_bias, options.eps) if options.norm else t
    u = F.linear(z, p.fc1_weight, p.fc1_bias)
    v = _convolve(u, p.depthwise_weight, p.depthwise_bias, padding=1)
    if options.inner_skip:
        v = v + u
    if options.inner_norm:
        v = F.layer_norm(v, v.shape[-1:], p.inner_norm_weight, p.inner_norm_bias, options.eps)
    y = F.linear(F.gelu(v), p.fc2_weight, p.fc2_bias)
    return t + y if options.residual else y


def _convolve(u: Tensor, weight: Tensor, bias: Tensor | None, padding: int | tuple[int, int]) -> Tensor:
    """Depthwise 3x3 convolution of (B, H, W, D), channels-last in and out."""
    return F.conv2d(u.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=u.shape[-1]).permute(0, 2, 3, 1)


class _Strips:
    """What forward and backward in strips share: the hidden activations of one image, row by row."""

    def __init__(self, t: Tensor, parameters: Parameters, options: Options) -> None:
        self.dtype = sum_dtype(t.dtype)
        self.p, self.options = cast_all(parameters, self.dtype), options
        self.batch, self.height, self.width, self.channels = t.shape
        self.hidden = self.p.fc1_weight.shape[0]
        self.row_bytes = self.width * max(self.hidden, self.channels) * self.dtype.itemsize
        self.strip = rows_of_a_strip(self.height, self.row_bytes)
        self.taps = self.p.depthwise_weight
        if options.inner_skip:
            # The skip is one more on the middle tap.
            self.taps = self.taps.clone()
            self.taps[:, 0, 1, 1] += 1
        # The bias of fc1 is one more column of its weight, for one of 1 in the tokens: it costs no pass over the
        # hidden activations. Columns to a multiple of 8, for aligned rows.
        self.columns = -(-(self.channels + 1) // 8) * 8
        self.fc1 = t.new_zeros((self.hidden, self.columns), dtype=self.dtype)
        self.fc1[:, : self.channels] = self.p.fc1_weight
        if self.p.fc1_bias is not None:
            self.fc1[:, self.channels] = self.p.fc1_bias
        # Two rows more than a strip: the halo below, of the first rows that the backward makes with theirs.
        self.tokens = t.new_zeros(((self.strip + 2) * self.width, self.columns), dtype=self.dtype)
        self.tokens[:, self.channels] = 1
        self.row = t.new_empty((self.width, self.hidden), dtype=self.dtype)

    def ranges(self) -> list[tuple[int, int]]:
        return list(strips(self.height, self.row_bytes))

    def rows(self, image: Tensor) -> Tensor:
        """Rows of a map of tokens, flat, in the dtype of the sums."""
        return image.reshape(-1, self.channels).to(self.dtype)

    def normed(self, t: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens that fc1 reads, from rows of (H, W, C), with the norm's statistics."""
        if not self.options.norm:
            return self.rows(t), None, None
        return layer_norm(self.rows(t), self.p.norm_weight, self.p.norm_bias, self.options.eps)

    def augmented(self, z: Tensor) -> Tensor:
        """Tokens with the columns that :attr:`fc1` has: themselves, one of 1, zeros; valid until the next call."""
        rows = self.tokens[: z.shape[0]]
        rows[:, : self.channels] = z
        return rows

    def hidden_rows(self, t: Tensor, strip: int, full: Tensor | None = None) -> HaloRows:
        """``fc1(norm(t))`` of one image (H, W, C), row by row."""

        def fill(first: int, last: int, out: Tensor) -> None:
            torch.mm(self.augmented(self.normed(t[first:last])[0]), self.fc1.t(), out=out.view(-1, self.hidden))

        return HaloRows(self.height, strip, self.row, fill, full)

    def convolved(self, window: Tensor) -> Tensor:
        """(rows, W, D) with the skip, flat, from a window with its two rows of halo."""
        return _convolve(window[None], self.taps, self.p.depthwise_bias, (0, 1)).reshape(-1, self.hidden)

    def inner_normed(self, v: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self.options.inner_norm:
            return v, None, None
        return layer_norm(v, self.p.inner_norm_weight, self.p.inner_norm_bias, self.options.eps)


def mix_ffn_forward(t: Tensor, parameters: Parameters, options: Options, keep: bool) -> tuple[Tensor, Tensor]:
    """The result, and the hidden activations (B, H + 2, W, D), a row of zeros above and below; none unless ``keep``."""
    s = _Strips(t, parameters, options)
    t = t.contiguous()
    y = torch.empty_like(t)
    hidden = t.new_empty((s.batch, s.height + 2, s.width, s.hidden) if keep else (0,), dtype=s.dtype)
    for image in range(s.batch):
        rows = s.hidden_rows(t[image], s.strip, hidden[image] if keep else None)
        for first, last in s.ranges():
            v, _, _ = s.inner_normed(s.convolved(rows.advance(first, last)))
            out = torch.ops.aten.gelu.out(v, out=v) @ s.p.fc2_weight.t()
            if s.p.fc2_bias is not None:
                out += s.p.fc2_bias
            if options.residual:
                out += s.rows(t[image, first:last])
            y[image, first:last].view(-1, s.channels).copy_(out)
    return y, hidden


def mix_ffn_backward(
    grad: Tensor, t: Tensor, parameters: Parameters, options: Options, hidden: Tensor
) -> tuple[Tensor, Parameters]:
    """Gradients of ``t`` and of every parameter, in the dtypes that these have."""
    s = _Strips(t, parameters, options)
    t, grad = t.contiguous(), grad.contiguous()
    d_t = torch.empty_like(t)
    sums = zeros_like_all(s.p)
    d_fc1 = torch.zeros_like(s.fc1)
    flipped = s.taps.flip(2, 3)
    for image in range(s.batch):
        kept = hidden[image] if hidden.numel() else None
        d_rows = HaloRows(s.height, s.strip, s.row, _gradient_of_convolved(s, t[image], grad[image], kept, sums))
        for first, last in s.ranges():
            d_u = _convolve(d_rows.advance(first, last)[None], flipped, None, (0, 1)).reshape(-1, s.hidden)
            z, mean, rstd = s.normed(t[image, first:last])
            d_fc1.addmm_(d_u.t(), s.augmented(z))
            d_z = d_u @ s.p.fc1_weight
            if mean is not None and rstd is not None:
                tokens, p = s.rows(t[image, first:last]), s.p
                d_z, d_weight, d_bias = layer_norm_backward(d_z, tokens, mean, rstd, p.norm_weight, p.norm_bias)
                add_to(sums.norm_weight, d_weight)
                add_to(sums.norm_bias, d_bias)
            if options.residual:
                d_z += s.rows(grad[image, first:last])
            d_t[image, first:last].view(-1, s.channels).copy_(d_z)
    sums.fc1_weight.copy_(d_fc1[:, : s.channels])
    add_to(sums.fc1_bias, d_fc1[:, s.channels])
    return d_t, cast_like(sums, parameters)


def _gradient_of_convolved(
    s: _Strips, t: Tensor, grad: Tensor, kept: Tensor | None, sums: Parameters
) -> Callable[[int, int, Tensor], None]:
    """Writes rows of the gradient of what the convolution (with its skip) gives; adds to the sums on the way."""
    # One row more than a strip: the first range that is asked for reaches one row beyond it.
    made = s.hidden_rows(t, s.strip + 1) if kept is None else None

    def fill(first: int, last: int, out: Tensor) -> None:
        window = made.advance(first, last) if made is not None else kept[first : last + 2]  # type: ignore[index]
        v = s.convolved(window)
        a, mean, rstd = s.inner_normed(v)
        d_y = s.rows(grad[first:last])
        add_to(sums.fc2_bias, d_y.sum(0))
        hidden = F.gelu(a)
        sums.fc2_weight.addmm_(d_y.t(), hidden)
        # From here on its memory holds the gradient: fewer maps of a strip share the cache.
        torch.mm(d_y, s.p.fc2_weight, out=hidden)
        d_v = torch.ops.aten.gelu_backward.grad_input(hidden, a, grad_input=hidden)
        if mean is not None and rstd is not None:
            p = s.p
            d_v, d_weight, d_bias = layer_norm_backward(d_v, v, mean, rstd, p.inner_norm_weight, p.inner_norm_bias)
            add_to(sums.inner_norm_weight, d_weight)
            add_to(sums.inner_norm_bias, d_bias)
        out.view(-1, s.hidden).copy_(d_v)
        _, d_taps, d_bias = torch.ops.aten.convolution_backward(
            out[None].permute(0, 3, 1, 2),
            window[None].permute(0, 3, 1, 2),
            s.taps,
            None if s.p.depthwise_bias is None else [s.hidden],
            [1, 1],
            [0, 1],
            [1, 1],
            False,
            [0, 0],
            s.hidden,
            [False, True, s.p.depthwise_bias is not None],
        )
        sums.depthwise_weight.add_(d_taps)
        add_to(sums.depthwise_bias, d_bias)

    return fill
