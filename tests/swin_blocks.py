"""The libraries' Swin blocks, for the tests of their drop-ins; a test skips where its library is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msformer_fast.nn import MonaiSwinBlock, TimmSwinBlock
from tests.harness.error_rule import Errors, errors_of

DROP_INS = {"timm": TimmSwinBlock, "monai": MonaiSwinBlock}

_operators = torch.library.Library("torchvision", "FRAGMENT")  # what it defines lives as long as it does


def has_torchvision() -> bool:
    """Whether it can be imported. timm and transformers take it without its compiled operators, which a build for
    another torch lacks: importing it asks for these two by name alone."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False
    except RuntimeError:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                _operators.define(f"{name}(Tensor x) -> Tensor")
    return True


def timm_swin() -> Any:
    """``timm.models.swin_transformer``."""
    if not has_torchvision():
        pytest.skip("needs timm and torchvision: pip install --no-deps timm torchvision")
    return pytest.importorskip("timm.models.swin_transformer", reason="needs timm: pip install --no-deps timm")


def monai_swin() -> Any:
    """``monai.networks.nets.swin_unetr``."""
    return pytest.importorskip("monai.networks.nets.swin_unetr", reason="needs MONAI: pip install --no-deps monai")


def block_of(
    library: str,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    dim: int = 12,
    heads: int = 3,
    std: float = 0.4,
    **options: Any,
) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """A block of random parameters in float64, and what its forward takes beside the map."""
    extra: tuple[Any, ...] = ()
    if library == "timm":
        block = timm_swin().SwinTransformerBlock(dim, tuple(size), heads, None, window, shift, **options)
    else:
        swin = monai_swin()
        block = swin.SwinTransformerBlock(dim, heads, tuple(window), tuple(shift), **options)
        used, moved = swin.get_window_size(size, window, shift)
        extra = (swin.compute_mask([-(-n // w) * w for n, w in zip(size, used, strict=True)], used, moved, "cpu"),)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return block.double(), extra


def batch(size: Sequence[int], dim: int = 12) -> Tensor:
    return torch.randn(2, *size, dim, dtype=torch.float64)


def results(module: Any, x: Tensor, *extra: Any, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Output, gradient of x and of every parameter by its name, of the sum of the output times ``weight``."""
    x = x.detach().requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)
    out = module(x, *extra)
    weight = (
        torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).view(out.shape)
        if weight is None
        else weight
    )
    found = torch.autograd.grad((out * weight.to(out.dtype)).sum(), [x, *parameters], allow_unused=True)
    return {
        "output": out.detach(),
        "x": found[0],
        **{name: g for name, g in zip(names, found[1:], strict=True) if g is not None},
    }


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    """Relative to the largest value of each."""
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        error = float((ours[name] - want).abs().max() / want.abs().max().clamp(min=1e-30))
        assert error <= tolerance, f"{name}: {error}"


def errors_in(
    dtype: torch.dtype, block: Any, drop_in: Callable[[Any], Any], x: Tensor, *extra: Any
) -> dict[str, Errors]:
    """Of drop-in and block in this dtype, against the block in float64, whose parameters are rounded to it first."""
    block, x = block.to(dtype), x.to(dtype)
    truth = results(block.double(), x.double(), *extra)
    theirs = results(block.to(dtype), x, *extra)
    ours = results(drop_in(block), x, *extra)
    return {name: errors_of(name, ours[name], theirs[name], truth[name]) for name in theirs}


def errors_under_autocast(
    block: Any,
    drop_in: Callable[[Any], Any],
    x: Tensor,
    *extra: Any,
    dtype: torch.dtype = torch.bfloat16,
    eps: float | None = None,
) -> dict[str, Errors]:
    """Of drop-in and block in float32 under autocast to ``dtype``, against the block in float64.

    What they give is float32, and has gone through ``dtype``, whose ``eps`` says how small an error can be.
    """
    x = x.float()
    truth = results(block.double(), x.double(), *extra)
    block = block.float()
    with torch.autocast(x.device.type, dtype=dtype):
        theirs = results(block, x, *extra)
        ours = results(drop_in(block), x, *extra)

    assert {value.dtype for value in theirs.values()} == {torch.float32}
    errors = {name: errors_of(name, ours[name], theirs[name], truth[name]) for name in truth}
    eps = torch.finfo(dtype).eps if eps is None else eps
    return {name: (replace(mine, eps=eps), replace(yours, eps=eps)) for name, (mine, yours) in errors.items()}


def with_large_biases(model: nn.Module) -> nn.Module:
    """The same network, its tables of relative positions as large as trained ones."""
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            nn.init.normal_(parameter)
    return model


def of_network(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and the gradients of its parameters."""
    out = model(x)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((out * weight).mean(), parameters, allow_unused=True)
    return {"output": out.detach()} | {n: g for n, g in zip(names, found, strict=True) if g is not None}
