"""Swin blocks of a whole model replaced by their drop-ins."""

from __future__ import annotations

from torch import nn

from msformer_fast.errors import InputError
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock


def swap_swin_blocks(model: nn.Module, *, backend: str | None = None) -> list[str]:
    """Replace every Swin block of timm (v1) and MONAI inside a model by its drop-in, in place.

    Args:
        model: holds the blocks. Blocks of other makes, Swin V2 among them, and drop-ins already there stay as they are.
        backend: of the drop-ins, see :func:`msformer_fast.ops.cross_scale_attention`.

    Returns:
        The qualified names of the blocks replaced, in order; none of a model without such blocks.

    Raises:
        InputError: a block that its drop-in refuses, with its name and the reason (three axes, a mask, index or method
            of its own): nothing was replaced then. Or ``model`` is itself a block, which ``of`` replaces.
    """
    if _drop_in(model) is not None:
        raise InputError(
            "swap_swin_blocks: model must hold the blocks, got a block; use TimmSwinBlock.of or MonaiSwinBlock.of"
        )
    places: list[tuple[nn.Module, str, str]] = []
    for path, parent in model.named_modules():
        for key, child in parent._modules.items():  # also the second place of a shared block
            kind = None if child is None else _drop_in(child)
            if kind is None:
                continue
            places.append((parent, key, f"{path}.{key}" if path else key))
            try:
                kind.check(child)
            except InputError as error:
                raise InputError(f"swap_swin_blocks: {places[-1][2]}: {error}") from error
    made: dict[nn.Module, nn.Module] = {}
    for parent, key, _ in places:
        block = parent.get_submodule(key)
        kind = _drop_in(block)
        assert kind is not None
        if block not in made:
            made[block] = kind(block, backend=backend)
        setattr(parent, key, made[block])
    return [name for _, _, name in places]


def _drop_in(module: nn.Module) -> type[TimmSwinBlock] | type[MonaiSwinBlock] | None:
    kinds: tuple[type[TimmSwinBlock], type[MonaiSwinBlock]] = (TimmSwinBlock, MonaiSwinBlock)
    return next((kind for kind in kinds if kind.structure.why_not(module) is None), None)
