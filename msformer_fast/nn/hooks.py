"""Whether somebody looks at the calls of a module, so that nothing may take their place."""

from __future__ import annotations

from collections.abc import Iterable

from einops.layers.torch import Rearrange
from torch import nn

from msformer_fast.tracing import constant_result

#: Classes of PyTorch's and einops' modules that this package's modules are made of.
_PARTS = frozenset((nn.BatchNorm2d, nn.Conv2d, nn.LayerNorm, nn.Linear, nn.ModuleList, nn.Sequential, Rearrange))


class Fused(nn.Module):
    """Base of a module whose op reads the parameters of its parts, which are then not called.

    Hooks of the parts run all the same: with one, the module calls part after part, with the same result up to
    rounding, in more time and memory. So it is with a part whose ``forward`` was replaced, and with one of another
    class (LoRA, weight norm, quantisation).
    """

    # Else every hook's dictionary is a guard, looked at in every call.
    @constant_result
    def _may_bypass(self, *names: str) -> bool:
        """Whether these parts, by default all, need not be called. Under ``torch.compile`` that is decided once, while
        it traces, as PyTorch does with hooks of any module."""
        return may_bypass([self._modules[name] for name in names] if names else self._modules.values())


def may_bypass(modules: Iterable[nn.Module | None]) -> bool:
    """Whether calls of these modules, and of all that is inside them, do no more than what they are made for.

    About half a microsecond a module.
    """
    if all_are_hooked():
        return False
    # Not module.modules(), which takes several times as long.
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module is None:
            continue
        kind = type(module)
        if not (kind in _PARTS or kind.__module__.startswith("msformer_fast.")) or is_looked_at(module):
            return False
        pending.extend(module._modules.values())
    return True


def is_looked_at(module: nn.Module) -> bool:
    """Whether somebody hooks into the calls of a module, or replaced its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def all_are_hooked() -> bool:
    """Whether there are hooks on the calls of every module of the process."""
    return bool(nn.modules.module._has_any_global_hook())
