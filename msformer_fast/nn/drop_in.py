"""A module that stands in for another one: its parts, its class's other methods, a forward of its own."""

from __future__ import annotations

import inspect
import operator
import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.nn.hooks import all_are_hooked, is_looked_at
from msformer_fast.ops.backend import exporting_to_onnx
from msformer_fast.tracing import constant_result


class DropIn(nn.Module):
    """Base of a module that takes the place of another and shares all that it is made of.

    Parameters, buffers, submodules and hooks are the module's own objects, in its very dictionaries: a hook's handle
    still removes it, a parameter set on one is set on both. Methods other than those defined here are those of the
    module's class. A subclass defines ``forward``; where it cannot compute a call itself it returns
    ``self.own_code(...)``.

    Args:
        module: what it stands in for.
        backend: for the ops of the subclass; see :mod:`msformer_fast.ops`.

    Attributes:
        library: the module's class.
        backend: as given.
        was_called: whether it was, outside of compiled code; ``None`` where a subclass does not keep account.
        on_trial: while it is proved; then it must compute by itself, whatever it takes.
        follows: names of the module's attributes that ``forward`` reads in every call, which may change.
    """

    on_trial = False
    follows: frozenset[str] = frozenset()

    def __init__(self, module: nn.Module, *, backend: str | None = None) -> None:
        super().__init__()
        self.__dict__.update(module.__dict__)
        self.__dict__.pop("_compiled_call_impl", None)  # it would call the module
        _point_hooks_to(self)
        self.library: Any = type(module)
        self.backend = backend
        self.was_called: bool | None = None
        _, *parameters = inspect.signature(type(module).forward).parameters.values()
        self._inputs = {each.name: each.default for each in parameters}
        _, *parts = module.modules()
        self._built = [_Built(module, self, self.follows), *(_Built(part, part) for part in parts)]
        self._share_attributes()

    def give_back(self, module: nn.Module) -> None:
        """Hand the module what its attributes became here since, the mode among them."""
        kept = {*module.__dict__, *self.follows} - {"_compiled_call_impl"}
        module.__dict__.update({name: value for name, value in self.__dict__.items() if name in kept})
        _point_hooks_to(module)

    def note_call(self) -> None:
        """Keep account of calls, for reports. Compiled code does not: the attribute would be a guard."""
        if not torch.compiler.is_compiling():
            self.was_called = True

    def may_gain(self, x: Any) -> bool:
        """Whether to compute where the module's own code would do too: where that is expected to be faster, and nobody
        records PyTorch's operators (TorchScript, ONNX, FX), who would find one that no other tool knows."""
        if self.on_trial:
            return True
        is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if isinstance(x, torch.fx.Proxy) or is_traced or exporting_to_onnx() or x.device.type == "meta":
            return False
        return self.backend is not None or x.device.type != "cpu" or self.gains_on_cpu(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` takes in its place: the module's own code."""
        (original,) = self._original
        return original

    def gains_on_cpu(self, x: Tensor) -> bool:
        """The same on the CPU, without a backend that somebody asked for: as measured by ``benchmarks/swaps.py``."""
        return True

    def where_it_gains(self) -> str:
        """What :meth:`gains_on_cpu` says, for reports; empty where it gains everywhere."""
        return ""

    def own_code(self, *inputs: Any, **named: Any) -> Any:
        """The forward of the module's class, on all that is here."""
        if self.on_trial:
            raise RuntimeError("its drop-in would run the module's own code")
        (original,) = self._original
        return self.library.forward(original, *inputs, **named)

    def _share_attributes(self) -> None:
        """Make an object of the module's class with this one's very attributes, for code that asks for its class."""
        original = object.__new__(self.library)
        object.__setattr__(original, "__dict__", self.__dict__)
        self._original = (original,)  # in a tuple it is no child

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_original"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._share_attributes()

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

    def usual_inputs(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...] | None:
        """What the module's own forward requires, in its order, out of what it was given by place and by name.

        ``None`` where the call is another one than was proved, and the module's own code must run: an optional argument
        has another value than its default, or the arguments do not fit the signature.
        """
        given = dict(zip(self._inputs, inputs, strict=False))
        if len(given) < len(inputs) or any(name in given or name not in self._inputs for name in named):
            return None
        given.update(named)
        usual = []
        for name, default in self._inputs.items():
            if default is not inspect.Parameter.empty:
                if name in given and not _is_default(given[name], default):
                    return None
            elif name in given:
                usual.append(given[name])
            else:
                return None
        return tuple(usual)

    def as_built(self) -> bool:
        """Whether the module and its parts are what they were when this was made: of the same classes, with the same
        numbers, flags and functions as attributes; and nobody hooks into a part, and none drops anything out.

        If not, a forward that does not call the parts would compute something else than they do. Under
        ``torch.compile`` all but dropout is looked at once, while it traces.
        """
        return self._may_bypass_parts() and not any(drops(built.part) for built in self._built)

    @constant_result
    def is_unchanged(self) -> bool:
        """The same but for hooks and dropout, for a forward that calls the parts that it may be asked about."""
        this, *parts = self._built
        return this.is_as_it_was(self.library) and all(built.is_as_it_was(type(built.part)) for built in parts)

    @constant_result
    def _may_bypass_parts(self) -> bool:
        if all_are_hooked() or any(is_looked_at(built.part) for built in self._built[1:]):
            return False
        return bool(self.is_unchanged())


#: What changes what a module computes, or sequences of these; arrays and objects may be caches.
_SETTINGS = (
    *(bool, int, float, complex, str, type(None), torch.dtype, torch.device, type),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType),
)
OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


class _Built:
    """What a module is made of: its class, its children, and the numbers, flags and functions among its attributes.

    Args:
        module: whose attributes they are.
        part: what has them from now on: the module itself, or its drop-in.
        but: names of attributes that may change.
    """

    def __init__(self, module: nn.Module, part: nn.Module, but: frozenset[str] = frozenset()) -> None:
        self.part = part
        self.kind = type(module)
        self.children = tuple(module._modules.items())
        watched = {name: value for name, value in module.__dict__.items() if name not in OF_EVERY_MODULE | but}
        names = [name for name, value in watched.items() if is_setting(value)]
        self.lists = {name: frozen(module.__dict__[name]) for name in names if type(module.__dict__[name]) is list}
        # Compared in one go, for this is done in every call; with a name that is always there, since a getter of one
        # name gives no tuple.
        self._values_of = operator.itemgetter("_modules", "_parameters", *names)
        self.values = self._values_of(module.__dict__)
        self.names = but.union(part.__dict__)

    def is_as_it_was(self, kind: type) -> bool:
        """Whether it still is so, and of this class."""
        attributes = self.part.__dict__
        try:
            if kind is not self.kind or self._values_of(attributes) != self.values:
                return False
        except KeyError:  # one was deleted
            return False
        if tuple(attributes["_modules"].items()) != self.children:
            return False
        if any(frozen(attributes[name]) != value for name, value in self.lists.items()):
            return False
        # An attribute that came later matters where it hides one of the class.
        return attributes.keys() <= self.names or not any(
            hasattr(kind, name) for name in attributes.keys() - self.names
        )


def is_setting(value: Any) -> bool:
    """Whether a value is a number, flag, text or function, or a sequence of them."""
    return isinstance(value, _SETTINGS) or (isinstance(value, (list, tuple)) and all(map(is_setting, value)))


def frozen(value: Any) -> Any:
    """A list, and lists in it, as tuples, which stay when it is changed."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def _is_default(given: Any, default: Any) -> bool:
    return given is default or (isinstance(given, _SETTINGS) and type(given) is type(default) and given == default)


def is_drop_path(part: Any) -> bool:
    """Whether this is a stochastic depth, which every library defines anew, under a name that ends so."""
    return type(part).__name__.endswith("DropPath")


def drops(part: Any) -> bool:
    """Whether this is a dropout, or a stochastic depth, at work."""
    if not part.training:
        return False
    probability = getattr(part, "p", None) if isinstance(part, nn.modules.dropout._DropoutNd) else None
    if probability is None and is_drop_path(part):
        probability = getattr(part, "drop_prob", None)
    return bool(probability)


def _point_hooks_to(module: nn.Module) -> None:
    """Hooks that keep their module keep this one: the other may soon be gone."""
    for hook in module._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            hook.module = weakref.ref(module)  # type: ignore[attr-defined]
