"""Swap the modules of a model that have a fast drop-in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from msformer_fast.errors import InputError
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.ops.backend import BACKENDS
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.own import OWN, is_own
from msformer_fast.swaps.probe import Make, Mismatch, probe
from msformer_fast.swaps.registry import kinds
from msformer_fast.swaps.report import Left, Place, Swap, Swaps
from msformer_fast.swaps.structure import structure_of

#: What runs code that it took from its modules before: to swap one of them would change nothing.
_FROZEN = (torch._dynamo.eval_frame.OptimizedModule, torch.jit.ScriptModule)


def accelerate(
    model: nn.Module,
    *,
    backend: str | None = None,
    only: str | Iterable[str] | None = None,
    skip: str | Iterable[str] | None = None,
) -> Swaps:
    """Swap the modules inside ``model`` that have a fast drop-in, in place, and say what was done.

    Recognised by their structure, wherever they were defined: the published ``EfficientAttention``, ``MixFFN``,
    ``MixFFN_skip`` and ``EfficientTransformerBlock`` in their variants; Swin blocks of timm, MONAI (and on volumes the
    layers around them) and Microsoft's code, torchvision's windowed attention, HuggingFace's Swin layers; modules of
    this package with ``backend="reference"``; and what :func:`msformer_fast.register_swap` added. Before a swap is made
    the drop-in is tried against a copy of the module: with random parameters in float64, outputs in evaluation and in
    training, and all gradients, must agree to 1e-9, else the module stays, with the reason. Modules of one structure
    are tried once.
    The maps of the trial have at most 33 x 6 pixels: a module that behaves otherwise on larger ones is not found out.

    A drop-in holds the module's very parameters, buffers, submodules and hooks, under the same names in the state dict,
    and keeps its mode: an optimizer made before goes on, a checkpoint loads both ways. Only this model is changed, or
    what shares the changed containers with it. The module's own code runs where the drop-in was not proved to do the
    same (somebody hooks into a part, or changed or replaced one; an optional argument has another value than its
    default; a dropout is at work), under tracers of PyTorch's operators, and on the CPU where it is faster.
    ``isinstance`` with the module's class does not hold for its drop-in.

    Call it before :func:`torch.compile`. With ``DistributedDataParallel`` the order does not matter, since parameters
    stay the same objects; before ``fully_shard`` or FSDP, which wrap modules.

    Args:
        model: holds the modules. What it swapped before stays.
        backend: of the drop-ins, see :mod:`msformer_fast.ops`; ``None`` for the fastest that can run each call.
        only: names of what may be swapped: a kind ("MixFFN", "SwinTransformerBlock of timm"), the name of a class, or
            a pattern of qualified names ("encoder.*", as in :mod:`fnmatch`); ``None`` for all.
        skip: names of what may not, likewise. It wins over ``only``.

    Returns:
        A :class:`Swaps`: what was swapped and left; ``undo()``; a context manager.

    Raises:
        InputError: a backend that does not exist; a name in ``only`` or ``skip`` that fits no module; ``model`` is
            itself a module to be swapped, with nothing to hold its drop-in. Nothing was swapped then.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"accelerate: model must be a torch.nn.Module, got a {type(model).__name__}")
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"accelerate: backend must be None or one of {', '.join(BACKENDS)}; got {backend!r}")
    if isinstance(model, _FROZEN):
        raise InputError(
            f"accelerate: model must not be compiled yet, got a {type(model).__name__}; compile it afterwards"
        )
    search = _Search(backend, _Choice(_names("only", only), _names("skip", skip)))
    search.root(model)
    search.choice.check()
    swaps = search.result(_held_elsewhere(model))
    for swap in swaps.swapped:
        for place in swap.places:
            place.parent._modules[place.key] = swap.replacement
    return swaps


@dataclass
class _Choice:
    """Which modules may be swapped, by kind, class or qualified name."""

    only: tuple[str, ...] | None
    skip: tuple[str, ...] | None
    met: set[str] = field(default_factory=set)

    def allows(self, name: str, module: nn.Module, kind: str) -> bool:
        skipped = self._fits(self.skip or (), name, module, kind)
        return (self.only is None or self._fits(self.only, name, module, kind)) and not skipped

    def see(self, name: str, module: nn.Module) -> None:
        """Any module that a name fits makes the name right, swapped or not."""
        self._fits((*(self.only or ()), *(self.skip or ())), name, module, "")

    def check(self) -> None:
        known = {kind.name for kind in kinds()}
        for argument, names in (("only", self.only), ("skip", self.skip)):
            for each in names or ():
                if each not in self.met and each not in known:
                    raise InputError(
                        f"accelerate: {argument} must hold kinds ({', '.join(sorted(known))}), names of classes, or "
                        f"patterns of qualified names in the model; {each!r} is none"
                    )

    def _fits(self, patterns: tuple[str, ...], name: str, module: nn.Module, kind: str) -> bool:
        fitting = {each for each in patterns if each in (kind, type(module).__name__) or fnmatchcase(name, each)}
        self.met |= fitting
        return bool(fitting)


class _Search:
    """Goes through a model from the outside in; what is swapped is entered where its kind says so."""

    def __init__(self, backend: str | None, choice: _Choice) -> None:
        self.backend = backend
        self.choice = choice
        self._kinds = kinds()
        self._swaps: dict[nn.Module, tuple[str, nn.Module, float]] = {}
        self._places: dict[nn.Module, list[Place]] = {}
        self._left: list[Left] = []
        self._proofs: dict[Any, tuple[int, float] | Mismatch] = {}
        self._others = 0

    def root(self, model: nn.Module) -> None:
        kind = next((kind for kind in self._kinds if _asks(kind, model) and kind.recognise(model) is True), None)
        if kind is not None and kind is not OWN:
            raise InputError(
                f"accelerate: model must hold the modules to be swapped, got one itself ({kind.name}); "
                "put it into a torch.nn.Sequential"
            )
        if kind is OWN:
            self._left.append(Left("the model itself", kind.name, "nothing holds it: set its backend attribute"))
        self._children(model, "")

    def result(self, held_elsewhere: dict[nn.Module, str]) -> Swaps:
        """held_elsewhere: modules that something else than their places leads to, which a swap would not change."""
        swapped = []
        for module, (kind, made, difference) in self._swaps.items():
            places = tuple(self._places[module])
            if module in held_elsewhere:
                reason = f"{held_elsewhere[module]} holds it besides, where a call would still reach the module itself"
                self._left.append(Left(places[0].name, kind, reason))
            else:
                swapped.append(Swap(kind, module, made, difference, places))
        return Swaps(tuple(swapped), tuple(self._left), self._others)

    def _children(self, parent: nn.Module, prefix: str) -> None:
        for key, child in parent._modules.items():
            if child is None:
                continue
            name = f"{prefix}.{key}" if prefix else key
            met = child in self._places
            self._places.setdefault(child, []).append(Place(name, parent, key))
            self.choice.see(name, child)
            if not met and self._enters(name, child):
                self._children(child, name)

    def _enters(self, name: str, module: nn.Module) -> bool:
        """Decide about a module; whether its children are to be looked at."""
        if isinstance(module, _FROZEN):
            reason = "its code was taken before: call accelerate, then compile"
            self._left.append(Left(name, f"compiled {type(module).__name__}", reason))
            return False
        if isinstance(module, DropIn):
            self._left.append(Left(name, type(module).__name__, "it is a drop-in already"))
            return False
        for kind in self._kinds:
            found = _asks(kind, module) and kind.recognise(module)
            if found is False:
                continue
            if not self.choice.allows(name, module, kind.name):
                self._left.append(Left(name, kind.name, "only or skip leaves it out"))
                return True
            kept = found if isinstance(found, str) else self._swap(kind, module)
            if kept:
                self._left.append(Left(name, kind.name, kept))
            return bool(kept) or kind.enters
        self._others += 1
        return True

    def _proved(self, kind: SwapKind, module: nn.Module) -> tuple[Make, float]:
        """The way whose drop-in equals the module; of modules of one structure the first is tried."""
        assert kind.calls is not None
        structure = kind.name, structure_of(module)
        ways = list(kind.ways(module))
        if structure not in self._proofs:
            try:
                way, difference = probe(module, ways, kind.calls, kind.others)
                self._proofs[structure] = ways.index(way), difference
            except Mismatch as error:
                self._proofs[structure] = error
        proof = self._proofs[structure]
        if isinstance(proof, Mismatch):
            raise proof
        index, difference = proof
        return ways[index], difference

    def _swap(self, kind: SwapKind, module: nn.Module) -> str | None:
        """Make the drop-in, or say why not."""
        if "forward" in module.__dict__:
            return "its forward was replaced on the instance"
        if module._compiled_call_impl is not None:
            return "it was compiled by itself: call accelerate, then compile"
        try:
            if kind.calls is None:
                way, difference = next(iter(kind.ways(module))), 0.0
            else:
                way, difference = self._proved(kind, module)
        except Mismatch as error:
            return str(error)
        made = way(module, self.backend)
        if not isinstance(made, DropIn):
            if any(value for name, value in module.__dict__.items() if name.endswith("_hooks")) and kind is not OWN:
                return "it has hooks, which its drop-in would lose"
            made.training = module.training
        for ours, theirs in (
            (made.named_parameters, module.named_parameters),
            (made.named_buffers, module.named_buffers),
        ):
            if [(name, id(value)) for name, value in ours()] != [(name, id(value)) for name, value in theirs()]:
                return "its drop-in does not hold its very parameters and buffers"
        self._swaps[module] = kind.name, made, difference
        return None


def _held_elsewhere(model: nn.Module) -> dict[nn.Module, str]:
    """Modules in attributes that register none, lists say, each with the attribute's qualified name."""
    held: dict[nn.Module, str] = {}
    seen: set[int] = set()  # a list may hold itself
    for prefix, parent in model.named_modules():
        for name, value in parent.__dict__.items():
            if name != "_modules":
                for module in _modules_in(value, seen):
                    held[module] = ".".join(filter(None, (prefix, name)))
    return held


def _modules_in(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """A module, or those inside of a container, that were not seen yet."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (dict, list, tuple, set)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _modules_in(each, seen)


def _asks(kind: SwapKind, module: nn.Module) -> bool:
    """This package's modules are of one kind, whatever their names are."""
    return kind is OWN or not is_own(module)


def _names(argument: str, names: str | Iterable[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    names = (names,) if isinstance(names, str) else tuple(names)
    for each in names:
        if not isinstance(each, str):
            raise InputError(f"accelerate: {argument} must hold strings, got {each!r}")
    return names
