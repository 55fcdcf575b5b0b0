"""What a kind of module that can be swapped is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from msformer_fast.swaps.probe import Calls, Make


@dataclass(frozen=True)
class SwapKind:
    """A kind of module with a drop-in; see :func:`msformer_fast.register_swap`.

    ``calls`` is ``None`` where nothing is to be proved: the drop-in is the same class under another setting. ``others``
    gives calls that are tried in evaluation alone, without gradients. With ``enters`` the parts of what was swapped are
    looked at too.
    """

    name: str
    recognise: Callable[[nn.Module], bool | str]
    ways: Callable[[nn.Module], Iterable[Make]]
    calls: Calls | None
    others: Calls | None = None
    enters: bool = False
