"""The kinds of modules that can be swapped: from the start, and how to add one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from msformer_fast.errors import InputError
from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.own import OWN
from msformer_fast.swaps.probe import Inputs, Make
from msformer_fast.swaps.published import ATTENTION, BLOCK, FEED_FORWARD
from msformer_fast.swaps.swin import HUGGINGFACE, MICROSOFT, MONAI, MONAI_LAYER, TIMM, TORCHVISION, TORCHVISION_3D
from msformer_fast.swaps.without_drop_in import WITHOUT

#: The block before its parts.
BUILT_IN: tuple[SwapKind, ...] = (
    *(OWN, BLOCK, ATTENTION, FEED_FORWARD),
    *(TIMM, MONAI, MONAI_LAYER, MICROSOFT, TORCHVISION, TORCHVISION_3D, HUGGINGFACE, WITHOUT),
)

_registered: dict[str, SwapKind] = {}


def register_swap(
    name: str,
    *,
    recognise: Callable[[nn.Module], bool | str],
    ways: Callable[[nn.Module], Iterable[Make]],
    calls: Callable[[nn.Module], Iterable[Inputs]],
) -> None:
    """Let :func:`msformer_fast.accelerate` swap modules of one more kind.

    What is registered is asked before the kinds that are built in, the latest first.

    Args:
        name: of the kind, for reports and for ``only`` and ``skip``.
        recognise: whether a module is of this kind; a string is the reason why one that looks like it is not, as the
            end of a sentence ("its activation is a ReLU"). It must not change the module.
        ways: constructors of the drop-in, each called with (module, backend), the likeliest first: the first one is
            taken whose drop-in proves equal. A drop-in must hold the module's own parameters and buffers under the same
            names, as :class:`msformer_fast.nn.DropIn` does.
        calls: for a module, what to call it with in the trial: one tuple of arguments a call, on the CPU. Take sizes
            that tell axes apart; wrap a floating tensor that gets no gradient, a mask say, in ``torch.nn.Buffer``.

    Raises:
        InputError: the name is taken.

    Example::

        class FastNorm(mf.nn.DropIn):
            def forward(self, x):
                return torch.nn.functional.layer_norm(x, x.shape[-1:], self.gain, self.shift)

        mf.register_swap(
            "MyNorm",
            recognise=lambda module: type(module) is MyNorm,
            ways=lambda module: [lambda module, backend: FastNorm(module, backend=backend)],
            calls=lambda module: [(torch.randn(2, 5, module.gain.numel()),)],
        )
    """
    if any(kind.name == name for kind in kinds()):
        raise InputError(f"register_swap: name must be a new one, {name!r} is taken; unregister_swap frees it")
    _registered[name] = SwapKind(name, recognise, ways, calls)


def unregister_swap(name: str) -> None:
    """Forget a kind that :func:`register_swap` added; swaps that were made stay.

    Raises:
        InputError: no kind of this name was added.
    """
    if name not in _registered:
        raise InputError(f"unregister_swap: name must be one of {sorted(_registered)}, got {name!r}")
    del _registered[name]


def kinds() -> list[SwapKind]:
    """Every kind, in the order in which they are asked."""
    return [*reversed(_registered.values()), *BUILT_IN]
