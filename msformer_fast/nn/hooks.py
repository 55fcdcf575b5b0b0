"""Whether somebody looks at the calls of a module, so that nothing may take their place."""

from __future__ import annotations

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has hooks of its calls."""
    return any(getattr(module, kind) for kind in _HOOKS)


def is_looked_at(module: nn.Module) -> bool:
    """Whether somebody hooks into a module, or replaced its forward."""
    return is_hooked(module) or "forward" in module.__dict__
