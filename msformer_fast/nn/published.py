"""Drop-ins for a block whose source went from repository to repository of medical segmentation.

Its three modules are named ``EfficientAttention``, ``MixFFN`` or ``MixFFN_skip``, and ``EfficientTransformerBlock``.
The copies differ in what they return, in the shape that they take, and in which of their norms they use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.efficient_attention import attend
from msformer_fast.nn.mix_ffn import arguments_of
from msformer_fast.tracing import constant_result


@dataclass(frozen=True)
class AttentionForm:
    """What one copy of ``EfficientAttention`` computes.

    Attributes:
        num_heads: number of heads.
        residual: it adds its input.
        context: what it returns besides: ``"none"``; the context of the ``"last"`` or ``"first"`` head,
            (B, Ck / num_heads, Cv / num_heads); or of ``"all"``, (B, num_heads, Ck / num_heads, Cv / num_heads).
    """

    num_heads: int = 1
    residual: bool = False
    context: str = "none"


@dataclass(frozen=True)
class FeedForwardForm:
    """What one copy of ``MixFFN`` computes.

    Attributes:
        residual: it adds its input.
        skip: it adds the depthwise convolution's input to its result.
        norm: name of the LayerNorm in front of the GELU, or ``None``.
    """

    residual: bool = False
    skip: bool = False
    norm: str | None = None


@dataclass(frozen=True)
class BlockForm:
    """What one copy of ``EfficientTransformerBlock`` computes: ``t = x + attn(norm1(x))``, ``t + mlp(norm2(t))``.

    Attributes:
        attention: what its attention computes.
        feed_forward: what its Mix-FFN computes; ``None`` where the module's own one is called, which may be any.
        context: what it returns besides, as of :class:`AttentionForm`.
    """

    attention: AttentionForm
    feed_forward: FeedForwardForm | None
    context: str = "none"


class _Published(DropIn):
    """What the three drop-ins share: the module's own code where it must run, and the shape that was given."""

    form: Any

    def __init__(self, module: nn.Module, form: Any, *, backend: str | None = None) -> None:
        super().__init__(module, backend=backend)
        self.form = form
        self.was_called = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        self.note_call()
        usual = self.usual_inputs(inputs, named)
        if usual is None or not (
            self.may_gain(usual[0]) and self.as_built() and (len(usual) > 1 or usual[0].ndim == 4)
        ):
            return self.own_code(*inputs, **named)
        x, *size = usual
        y, *context = self.on_map(_as_map(self, x, size))
        # Contiguous like the module's own result, which callers may view.
        y = y.flatten(1, 2) if x.ndim == 3 else y.permute(0, 3, 1, 2).contiguous()
        return (y, *context) if context else y

    def on_map(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, C) -> the same, and the context if it is returned."""
        raise NotImplementedError

    def gains_on_cpu(self, x: Tensor) -> bool:
        least = self.least_pixels()[torch.is_grad_enabled()]
        images, channels = max(x.shape[0], 1), self.map_channels()
        if least is None or x.numel() < least * images * channels:
            return False
        return self.keeps_busy(x.numel(), images, channels, _threads())

    def where_it_gains(self) -> str:
        inference, training = (
            "never" if least is None else f"from {least:,} pixels on" for least in self.least_pixels()
        )
        return f"on the CPU {inference}, in training {training}"

    def keeps_busy(self, numbers: int, images: int, channels: int, threads: int) -> bool:
        """Whether the op has work for half of the threads. Plain code shares the products of any map among all."""
        # Three rows of a square map are worth a thread: 2 * images * sqrt(pixels) / 3 >= threads
        return 4 * images * numbers >= 9 * threads**2 * channels

    def map_channels(self) -> int:
        """Channels of the map."""
        raise NotImplementedError

    def least_pixels(self) -> tuple[int | None, int | None]:
        """Pixels of an image from which on the op is faster on the CPU: in inference, in training; ``None``: never."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.form}, backend={self.backend!r}"


class PublishedEfficientAttention(_Published):
    """A stand-in for a published ``EfficientAttention``: keys, queries, values and reprojection are 1x1 convolutions.

    Args:
        module: what it stands in for; its parts are shared, see :class:`msformer_fast.nn.DropIn`.
        form: what the module computes. :func:`msformer_fast.accelerate` finds it out and proves it.
        backend: see :func:`msformer_fast.ops.efficient_attention`.

    Where somebody hooks into a part, something was changed since, or the op would be slower, as on the CPU on small
    maps, the module's own code runs.

    Shape: a map (B, C, H, W); tokens (B, H * W, C) with H and W behind them, or with both in one; or a map with H and
    W. The result is of the same shape, and contiguous as the module's own. A context comes as the form says.

    Raises:
        InputError: from a call, H and W that do not fit the tokens.

    Source: Shen et al., "Efficient Attention", WACV 2021.
    """

    form: AttentionForm

    def on_map(self, x: Tensor) -> tuple[Tensor, ...]:
        form = self.form
        y, context = attend(self, x, None, heads=form.num_heads, residual=form.residual, backend=self.backend)
        return y, *_returned(context, form.context)

    def keeps_busy(self, numbers: int, images: int, channels: int, threads: int) -> bool:
        return numbers >= 32 * threads * channels  # 64 tokens are worth a thread

    def map_channels(self) -> int:
        return int(self.keys.in_channels)

    def least_pixels(self) -> tuple[int | None, int | None]:
        return _least_pixels_of_attention(self.map_channels(), self.form.num_heads)


class PublishedMixFFN(_Published):
    """A stand-in for a published ``MixFFN`` or ``MixFFN_skip``: ``fc1``, ``dwconv.dwconv``, a GELU, ``fc2``, norms.

    As :class:`PublishedEfficientAttention`; where a dropout is at work in training, the module's own code runs too.

    Source: Xie et al., "SegFormer", NeurIPS 2021; Huang et al., "MISSFormer", 2021.
    """

    form: FeedForwardForm

    def on_map(self, x: Tensor) -> tuple[Tensor, ...]:
        return (_feed_forward(self, x, self.form, None, self.form.residual, self.backend),)

    def map_channels(self) -> int:
        return int(linear_maps(self)[0].weight.shape[1])

    def least_pixels(self) -> tuple[int, int]:
        return _least_pixels_of_feed_forward(linear_maps(self)[0].weight)


class PublishedTransformerBlock(_Published):
    """A stand-in for a published ``EfficientTransformerBlock``: norms and residuals are part of the two ops.

    As :class:`PublishedEfficientAttention`; where a dropout is at work in training, the module's own code runs too.

    Source: Azad et al., "DAE-Former", 2022; MS-Former.
    """

    form: BlockForm

    def on_map(self, x: Tensor) -> tuple[Tensor, ...]:
        form, parts = self.form, self._modules
        norm1: Any = parts["norm1"]
        norm2: Any = parts["norm2"]
        options = {"heads": form.attention.num_heads, "residual": True, "backend": self.backend}
        t, context = attend(parts["attn"], x, norm1, **options)
        if form.feed_forward is None:
            mlp: Any = parts["mlp"]
            _, height, width, _ = t.shape
            tokens = t.flatten(1, 2)
            y = (tokens + mlp(norm2(tokens), height, width)).unflatten(1, (height, width))
        else:
            y = _feed_forward(parts["mlp"], t, form.feed_forward, norm2, True, self.backend)
        return y, *_returned(context, form.context)

    def map_channels(self) -> int:
        return int(self.attn.keys.in_channels)

    def least_pixels(self) -> tuple[int | None, int | None]:
        if self.form.feed_forward is None:
            return _least_pixels_of_attention(self.map_channels(), self.form.attention.num_heads)
        # Neither the tokens between both ops nor what the norms make is in memory, whatever the heads.
        weight = linear_maps(self.mlp)[0].weight
        return max(150, weight.numel() // 2048), max(150, 7 * weight.shape[0] // 20)


@constant_result
def _threads() -> int:
    return torch.get_num_threads()


def _least_pixels_of_attention(channels: int, heads: int) -> tuple[int | None, int | None]:
    """As :meth:`_Published.least_pixels`, measured by ``benchmarks/swaps.py``: 64 to 512 channels, maps of 7 to 129
    pixels a side."""
    if heads == 1:
        return max(400, 3 * channels // 2), max(400, 2 * channels)
    # With several heads the op saves few products, and without gradients little memory.
    return None, 8 * channels if channels >= 128 else None


def _least_pixels_of_feed_forward(weight: Tensor) -> tuple[int, int]:
    """The same of ``fc1``'s weight, from 8 channels on. Every thread reads the weights anew for some rows, and it
    makes rows beside its own again."""
    hidden = weight.shape[0]
    return hidden // 3, 3 * hidden // 4


def _feed_forward(
    part: Any, t: Tensor, form: FeedForwardForm, norm: nn.LayerNorm | None, residual: bool, backend: str | None
) -> Tensor:
    inner = None if form.norm is None else getattr(part, form.norm)
    if norm is not None and inner is not None and norm.eps != inner.eps:  # the op has one eps
        y = _feed_forward(part, norm(t), form, None, False, backend)
        return t + y if residual else y
    fc1, fc2 = linear_maps(part)
    parameters, options = arguments_of(fc1, depthwise(part), fc2, norm, inner)
    return ops.mix_ffn(t, *parameters, inner_skip=form.skip, residual=residual, backend=backend, **options)


def linear_maps(part: Any) -> tuple[Any, Any]:
    """The two linear maps of a published Mix-FFN, by either of their names; ``None`` where one is missing."""
    names = ("dense1", "dense2") if "dense1" in part._modules else ("fc1", "fc2")
    first, second = (part._modules.get(name) for name in names)
    return first, second


def depthwise(part: Any) -> Any:
    """The depthwise convolution of a published Mix-FFN, which most copies wrap in a module of their own."""
    return getattr(part.dwconv, "dwconv", part.dwconv)


def _as_map(owner: DropIn, x: Tensor, size: Sequence[Any]) -> Tensor:
    """(B, H, W, C) of a map (B, C, H, W), or of tokens (B, H * W, C) and their H and W."""
    if not size:
        return x.permute(0, 2, 3, 1)
    height, width = size if len(size) == 2 else size[0]
    if x.ndim == 3 and x.shape[1] == height * width:
        return x.unflatten(1, (height, width))
    if x.ndim == 4 and tuple(x.shape[2:]) == (height, width):
        return x.permute(0, 2, 3, 1)
    raise InputError(
        f"{type(owner).__name__}: x must be (B, H * W, C) or (B, C, H, W) with H = {height} and W = {width}, "
        f"got {tuple(x.shape)}"
    )


def _returned(context: Tensor, which: str) -> tuple[Tensor, ...]:
    if which == "none":
        return ()
    return (context if which == "all" else context[:, -1 if which == "last" else 0].contiguous(),)
