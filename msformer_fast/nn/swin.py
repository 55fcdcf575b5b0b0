"""Drop-ins for the Swin blocks of timm and MONAI: their own parts, with the window attention in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin_attention import WHERE_VOLUMES_GAIN, WindowDropIn, attend_windows, gains_on_volumes
from msformer_fast.nn.swin_structure import (
    MONAI,
    SEAM,
    TIMM,
    Structure,
    bias_of,
    clamped,
    needs_the_library,
    replaced,
    seam_mask,
    sides,
    standard_index,
)
from msformer_fast.windows import product

#: As ``mask_matrix``: what MONAI's ``compute_mask`` would make, where nobody has made it.
STANDARD_MASK = "standard"


class SwinBlock(WindowDropIn):
    """Base of the drop-ins: a block's own parts, and what is not the attention by the code of the block's class."""

    structure: ClassVar[Structure]

    def __init__(self, block: nn.Module, *, backend: str | None = None) -> None:
        self.check(block)
        super().__init__(block, backend=backend)

    @classmethod
    def check(cls, block: Any) -> None:
        """Raise :class:`msformer_fast.InputError` for a block that this does not stand in for."""
        name, library = cls.__name__, cls.structure.library
        reason = cls.structure.why_not(block)
        if reason is not None:
            raise InputError(f"{name}: block must be a SwinTransformerBlock of {library}: {reason}")
        changed = replaced(block, "forward", cls.structure.replaced)
        if changed:
            raise InputError(f"{name}: block must have the methods of its class; {changed[0]} was replaced on it")
        window = sides(block.window_size)
        axes = cls.structure.axes
        if len(window) not in axes:
            got, wanted = " x ".join(str(size) for size in window), " or ".join(str(count) for count in axes)
            raise InputError(f"{name}: block must have windows of {wanted} axes, got {got}")
        index = block.attn.relative_position_index
        if not index.is_meta and not torch.equal(index.cpu(), standard_index(window)):
            raise InputError(f"{name}: block must have Swin's relative_position_index for windows of {window}")

    @classmethod
    def check_mask(cls, block: Any) -> None:
        """Raise :class:`msformer_fast.InputError` for a block whose ``attn_mask`` is not the usual one of its size."""
        mask, window, shift = block.attn_mask, sides(block.window_size), sides(block.shift_size)
        if mask is not None and mask.is_meta:
            return
        shifted = any(shift)
        counts = _counts(block.input_resolution, window)
        if shifted != (mask is not None) or (shifted and not _is_standard(mask, counts, window, shift)):
            raise InputError(
                f"{cls.__name__}: block must have Swin's attn_mask for its input_resolution, or none unshifted"
            )

    def _attend(
        self, x: Tensor, window: Sequence[int], shift: Sequence[int], bias: Tensor, order: str, seam: float
    ) -> Tensor:
        """Attention of the normed map (B, [D,] H, W, C), projections included."""
        attn = self.attn
        y = attend_windows(
            [attn.qkv],
            x,
            window,
            shift,
            heads=attn.num_heads,
            scale=attn.scale,
            bias=bias,
            order=order,
            seam=seam,
            backend=self.backend,
        )
        return attn.proj_drop(attn.proj(y))


class TimmSwinBlock(SwinBlock):
    """A stand-in for timm's ``SwinTransformerBlock`` (v1), equal to it up to rounding.

    Norms, projections, MLP, drop path, parameters, buffers and hooks are the block's own objects, and the state dict
    has its names; it is no instance of the block's class. Between the two projections
    :func:`msformer_fast.ops.cross_scale_attention` reads the map in place: no roll, padding, partition, or their
    reverse. Tokens across the seam get -100 added to their score, and where sizes do not divide the map is rolled,
    then padded with tokens that carry the projection's bias and take part, all as in timm. The window and the shift
    are the block's, by timm's own rules (``always_partition``, ``set_input_size``); after a ``set_input_size`` the
    block is not to be used beside its drop-in.

    Where somebody hooks into the attention or a part of it, where its dropout is at work, and on the CPU, where that is
    faster, the attention is computed by timm's code.

    Attributes:
        library: the block's class, whose other methods work here.
        backend: see :func:`msformer_fast.ops.cross_scale_attention`.

    Shape: (B, H, W, C) -> (B, H, W, C), any floating dtype.

    Raises:
        InputError: from :meth:`of`, a block of another class or make (Swin V2 has a logit scale and no bias table), or
            with a mask or index of its own; from a call, as the block without ``dynamic_mask`` has a mask for one
            size, a map of another number of windows.
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Swin Transformer", ICCV 2021; timm.models.swin_transformer.
    """

    structure = TIMM

    @classmethod
    def of(cls, block: nn.Module, *, backend: str | None = None) -> TimmSwinBlock:
        """The drop-in for a block, in its mode; see the class for shapes and errors."""
        return cls(block, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        self.note_call()
        return self.library.forward(self, x)

    @classmethod
    def check(cls, block: Any) -> None:
        super().check(block)
        if not getattr(block, "dynamic_mask", False):
            cls.check_mask(block)

    def _attn(self, x: Tensor) -> Tensor:
        if needs_the_library(self.attn):
            return self.library._attn(self, x)
        window, shift = self.window_size, self.shift_size
        if any(shift) and not getattr(self, "dynamic_mask", False):
            counts, masks = _counts(x.shape[1:3], window), _counts(self.input_resolution, window)
            if counts != masks:
                raise InputError(
                    f"TimmSwinBlock: x must have as many windows as input_resolution {tuple(self.input_resolution)}, "
                    f"for which the mask was made, {masks}; got {counts} of {tuple(x.shape[1:3])}; "
                    "call set_input_size, or build the model with strict_img_size=False"
                )
        if not self.may_gain(x):
            return self.library._attn(self, x)
        return self._attend(x, window, shift, self.attn.relative_position_bias_table, "roll_pad", SEAM)


class MonaiSwinBlock(SwinBlock):
    """A stand-in for MONAI's ``SwinTransformerBlock``, for maps or volumes, equal to it up to rounding.

    As :class:`TimmSwinBlock`, but the map is padded, then rolled, and on an axis that is no longer than the window the
    window becomes the axis and the shift 0, all as in MONAI; there the bias is the block's too, which takes the first
    rows and columns of the full window's index. ``use_checkpoint`` works as before, and ``use_flash_attention`` matters
    where MONAI's own code runs.

    ``mask_matrix`` must be what MONAI's ``compute_mask`` makes for the padded size, ``"standard"`` for the same without
    its being made (see :class:`MonaiSwinLayer`), or ``None`` for no mask; as in MONAI a block without shift does not
    look at it. Its numbers are read in every call on the CPU; on a device, where reading waits, and of volumes, whose
    mask may have hundreds of megabytes, in the first call of every size; inside ``torch.compile`` its shape alone.

    Attributes:
        library: the block's class, whose other methods work here.
        backend: see :func:`msformer_fast.ops.cross_scale_attention`.

    Shape: x (B, [D,] H, W, C), mask_matrix (windows, tokens, tokens) -> as x, any floating dtype.

    Raises:
        InputError: from :meth:`of`, a block of another class or make, or with an index of its own; from a call, a mask
            that is not the standard one, an input of other axes than the windows.
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Swin Transformer", ICCV 2021; Hatamizadeh et al., "Swin UNETR", 2022;
    monai.networks.nets.swin_unetr.
    """

    structure = MONAI

    def __init__(self, block: nn.Module, *, backend: str | None = None) -> None:
        super().__init__(block, backend=backend)
        self._checked: set[tuple[Any, ...]] = set()

    @classmethod
    def of(cls, block: nn.Module, *, backend: str | None = None) -> MonaiSwinBlock:
        """The drop-in for a block, in its mode; see the class for shapes and errors."""
        return cls(block, backend=backend)

    def forward(self, x: Tensor, mask_matrix: Tensor | str | None) -> Tensor:
        self.note_call()
        return self.library.forward(self, x, mask_matrix)

    def forward_part1(self, x: Tensor, mask_matrix: Tensor | str | None) -> Tensor:
        """Norm and attention, before the residual."""
        axes = len(self.window_size)
        if x.ndim != axes + 2:
            wanted = "(B, H, W, C)" if axes == 2 else "(B, D, H, W, C)"
            raise InputError(f"MonaiSwinBlock: x must be {wanted}, as the windows, got {tuple(x.shape)}")
        attn = self.attn
        window, shift = self._sides(x)
        is_standard = isinstance(mask_matrix, str)
        by_itself = not needs_the_library(attn)
        seam = 0.0
        if by_itself and any(shift) and mask_matrix is not None:
            if not isinstance(mask_matrix, str):
                self._check_mask(mask_matrix, x, window, shift)
            seam = SEAM
        if not (by_itself and self.may_gain(x)):
            if is_standard:
                counts = _counts(x.shape[1:-1], window)
                mask_matrix = seam_mask(counts, window, shift, x.device) if any(shift) else None
            return self.library.forward_part1(self, x, mask_matrix)
        table = bias_of(attn.relative_position_bias_table, attn.relative_position_index, self.window_size, window)
        return self._attend(self.norm1(x), window, shift, table, "pad_roll", seam)

    def gains_on_cpu(self, x: Tensor) -> bool:
        if len(self.window_size) == 2:
            return False
        window, shift = self._sides(x)
        flash = getattr(self.attn, "use_flash_attention", False) and not torch.is_grad_enabled()
        return gains_on_volumes(x, window, shift, self.window_size, flash)

    def where_it_gains(self) -> str:
        return WHERE_VOLUMES_GAIN if len(self.window_size) == 3 else super().where_it_gains()

    def _sides(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Window and shift of every axis."""
        return clamped(x.shape[1:-1], self.window_size, self.shift_size)

    def _check_mask(self, mask: Tensor, x: Tensor, window: Sequence[int], shift: Sequence[int]) -> None:
        counts = _counts(x.shape[1:-1], window)
        tokens = product(window)
        shape = (product(counts), tokens, tokens)
        wrong = f"got {tuple(mask.shape)}" if mask.shape != shape else None
        size = (*counts, *window, *shift, mask.device, mask.dtype)
        if wrong is None and not (torch.compiler.is_compiling() or mask.is_meta or size in self._checked):
            wrong = None if _is_standard(mask, counts, window, shift) else "got other numbers"
            if mask.device.type != "cpu" or len(window) == 3:
                self._checked.add(size)
        if wrong is not None:
            self._checked.discard(size)
            raise InputError(
                f"MonaiSwinBlock: mask_matrix must be None or compute_mask's for windows of {window} and shift "
                f"{shift}, {shape}, since no other is applied; {wrong}"
            )


def _counts(sizes: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """Windows along every axis."""
    return tuple([-(-size // side) for size, side in zip(sizes, window, strict=True)])


def _is_standard(mask: Tensor, counts: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> bool:
    return mask.is_floating_point() and torch.equal(mask, seam_mask(counts, window, shift, mask.device).to(mask.dtype))
