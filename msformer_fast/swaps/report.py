"""What a call of ``accelerate`` did, for people and for ``undo``."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from torch import nn

from msformer_fast.errors import InputError
from msformer_fast.nn.drop_in import DropIn


@dataclass(frozen=True)
class Place:
    """Where a module stands: ``parent._modules[key]``, under the qualified name ``name``."""

    name: str
    parent: nn.Module = field(repr=False)
    key: str

    def module(self) -> nn.Module | None:
        """What stands there now."""
        return self.parent._modules.get(self.key)


@dataclass(frozen=True)
class Swap:
    """A module that was swapped.

    Attributes:
        kind: what it was recognised as.
        original: the module itself.
        replacement: what stands in its place.
        difference: the largest difference between the two in the trial, over the largest value of its tensor, in
            float64; 0.0 where nothing was to be proved.
        places: where it stands in the model, more than one where it is shared.
    """

    kind: str
    original: nn.Module = field(repr=False)
    replacement: nn.Module = field(repr=False)
    difference: float
    places: tuple[Place, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Its qualified names in the model."""
        return tuple(place.name for place in self.places)

    @property
    def was_called(self) -> bool | None:
        """Whether the replacement was called so far; ``None`` where that is not known."""
        return getattr(self.replacement, "was_called", None)

    def __str__(self) -> str:
        same = type(self.replacement) is type(self.original)
        proof = "another backend" if same else f"differs by {self.difference:.0e} in float64"
        where = self.replacement.where_it_gains() if isinstance(self.replacement, DropIn) else ""
        gains = f"; gains {where}" if where else ""
        return f"{', '.join(self.names)}: {self.kind}, a {type(self.original).__name__}; {proof}{gains}"


@dataclass(frozen=True)
class Left:
    """A module that looks like one with a drop-in and was left as it is, with the reason in a sentence."""

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}; {self.reason}"


def _stand_ins(replacement: nn.Module) -> tuple[nn.Module | None, ...]:
    """A replacement, and what ``torch.jit.script`` leaves in its place."""
    return (replacement, replacement.__prepare_scriptable__()) if isinstance(replacement, DropIn) else (replacement,)


class Swaps:
    """What :func:`msformer_fast.accelerate` swapped in a model, what it left, and the way back.

    ``print(swaps)`` lists both. As a context manager it undoes the swaps at the end. To copy or pickle a swapped model
    together with its way back, take both at once: ``copy.deepcopy((model, swaps))``.

    Attributes:
        swapped: one entry a module, in the model's order.
        left: modules that look like one with a drop-in, and why they stay.
        others: how many further modules have no drop-in.
    """

    def __init__(self, swapped: tuple[Swap, ...], left: tuple[Left, ...], others: int) -> None:
        self.swapped = swapped
        self.left = left
        self.others = others
        self._undone = False

    def undo(self) -> None:
        """Put every original back, in the mode and with the attributes that its replacement has now.

        Parameters and buffers were shared all along. A second call does nothing.

        Raises:
            InputError: somebody put another module in the place of a replacement; nothing was put back then.
        """
        if self._undone:
            return
        for swap in self.swapped:
            for place in swap.places:
                if place.module() not in _stand_ins(swap.replacement):
                    raise InputError(
                        f"undo: {place.name} must still be the replacement, got a {type(place.module()).__name__}; "
                        "undo what was done later first"
                    )
        for swap in self.swapped:
            if isinstance(swap.replacement, DropIn):
                swap.replacement.give_back(swap.original)
            swap.original.training = swap.replacement.training
            for place in swap.places:
                place.parent._modules[place.key] = swap.original
        self._undone = True

    def __enter__(self) -> Swaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __len__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}" + (" (undone)" if self._undone else "")]
        ran = any(swap.was_called for swap in self.swapped)
        lines += [f"  {swap}" + ("; NOT CALLED so far" * (ran and swap.was_called is False)) for swap in self.swapped]
        lines += [f"left {len(self.left)} that look alike"] if self.left else []
        lines += [f"  {left}" for left in self.left]
        return "\n".join([*lines, f"{self.others} other modules have no drop-in"])

    def __repr__(self) -> str:
        return f"Swaps(swapped={len(self.swapped)}, left={len(self.left)}, others={self.others})"
