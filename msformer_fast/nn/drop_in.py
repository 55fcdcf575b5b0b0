"""A module that stands in for another one: its parts, its class's other methods, a forward of its own."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

from torch import nn

from msformer_fast.nn.hooks import all_are_hooked, is_looked_at


class DropIn(nn.Module):
    """Base of a module that takes the place of another and shares all that it is made of.

    Parameters, buffers, submodules and hooks are the module's own objects, in its very dictionaries: a hook's handle
    still removes it, a parameter set on one is set on both. Methods other than those defined here are those of the
    module's class. A subclass defines ``forward``; where it cannot compute a call itself it may return
    ``self.library.forward(self, ...)``, which is the module's own code.

    Args:
        module: what it stands in for.
        backend: for the ops of the subclass; see :mod:`msformer_fast.ops`.

    Attributes:
        library: the module's class.
        backend: as given.
    """

    def __init__(self, module: nn.Module, *, backend: str | None = None) -> None:
        super().__init__()
        self.__dict__.update(module.__dict__)
        self._compiled_call_impl = None  # it would call the module
        _point_hooks_to(self)
        self.library: Any = type(module)
        self.backend = backend
        self._inputs = tuple(inspect.signature(type(module).forward).parameters)[1:]
        self._built = [type(part) for part in module.modules()][1:]

    def give_back(self, module: nn.Module) -> None:
        """Hand the module what its attributes became here since, the mode among them."""
        kept = set(module.__dict__) - {"_compiled_call_impl"}
        module.__dict__.update({name: value for name, value in self.__dict__.items() if name in kept})
        _point_hooks_to(module)

    def __getattr__(self, name: str) -> Any:
        """Other methods and class attributes of the module's class."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            library = self.__dict__.get("library")
            if library is None or not hasattr(library, name):
                raise
            found = inspect.getattr_static(library, name)
            return found.__get__(self, library) if hasattr(found, "__get__") else found

    def in_order(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """What the module's own forward was given, by place and by name, in the order of its arguments."""
        return (*inputs, *(named[name] for name in self._inputs[len(inputs) :] if name in named))

    def as_built(self) -> bool:
        """Whether every part is still of the class it had, nobody hooks into one, and none drops anything out.

        If not, a forward that does not call the parts would compute something else than they do.
        """
        parts = list(self.modules())[1:]
        if all_are_hooked() or [type(part) for part in parts] != self._built:
            return False
        return not any(is_looked_at(part) or drops(part) for part in parts)


def drops(part: Any) -> bool:
    """Whether this is a dropout, or a stochastic depth, at work."""
    if not part.training:
        return False
    probability = getattr(part, "p", None) if isinstance(part, nn.modules.dropout._DropoutNd) else None
    if probability is None and type(part).__name__ == "DropPath":
        probability = getattr(part, "drop_prob", None)
    return bool(probability)


def _point_hooks_to(module: nn.Module) -> None:
    """Hooks that keep their module keep this one: the other may soon be gone."""
    for hook in module._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(module)  # type: ignore[attr-defined]
