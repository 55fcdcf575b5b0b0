"""The proof that a drop-in computes what a module does: both, on random numbers, in float64, gradients too."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from msformer_fast.nn.drop_in import DropIn

#: A way to make a drop-in of a module: (module, backend) -> drop-in.
Make = Callable[[nn.Module, str | None], nn.Module]

#: What one call of a module takes.
Inputs = Sequence[Any]

#: What gives the calls of a trial for a module.
Calls = Callable[[nn.Module], Iterable[Inputs]]

#: Largest difference, over the largest value of its tensor, that still counts as rounding.
TOLERANCE = 1e-9


class Mismatch(Exception):
    """Why a drop-in does not stand in for a module, as the end of a sentence."""


def probe(
    module: nn.Module,
    ways: Iterable[Make],
    calls: Calls,
    others: Calls | None = None,
) -> tuple[Make, float]:
    """The first of these ways whose drop-in equals the module, and the largest difference that was left.

    Both run on the CPU in float64 with the same fresh random parameters, in evaluation and in training, where
    dropout is off: outputs, and in training the gradients of the inputs and of every parameter, must agree to rounding,
    for every call. Module, generators and autocast are left as they were.

    Args:
        module: on any device, in any dtype.
        ways: how drop-ins are made, the likeliest first.
        calls: gives what the module is called with; floating tensors are cast to float64 and differentiated, but for
            those of class ``torch.nn.Buffer``.
        others: gives further calls, which are tried in evaluation alone.

    Raises:
        Mismatch: none of them equals the module, or it cannot be called so.
    """
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        # New tensors on the CPU, whatever device the caller has chosen: two contexts of devices do not nest.
        torch._C.DisableTorchFunction(),
        contextlib.redirect_stdout(io.StringIO()),  # what the module prints in a call that nobody made
    ):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every card too
        twin = _twin(module)
        trials = list(_trials(twin, calls, others))
        before = _attributes(twin)
        wanted = [_results(twin, *trial) for trial in trials]
        stored = sorted(name for name, value in _attributes(twin).items() if before.get(name) is not value)
        if stored:
            raise Mismatch(f"its forward stores {stored[0]}, which its drop-in would not")
        reasons = []
        for way in ways:
            try:
                drop_in = way(twin, None)
                if isinstance(drop_in, DropIn):
                    drop_in.on_trial = True
                found = (_results(drop_in, *trial) for trial in trials)
                return way, max(_difference(ours, want) for ours, want in zip(found, wanted, strict=True))
            except Mismatch as error:
                reasons.append(error)
    # The likeliest way's reason: the others are wrong in some other respect besides.
    raise reasons[0] if reasons else Mismatch("there is no drop-in for it")


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What is kept on a module and its parts, but their mode."""
    return {
        ".".join(filter(None, (prefix, name))): value
        for prefix, part in module.named_modules()
        for name, value in (part.__dict__ | part._buffers).items()
        if name != "training"
    }


class _Trial(NamedTuple):
    """One call; in training with its gradients, which take most of the time."""

    inputs: tuple[Any, ...]
    training: bool = False


def _trials(
    twin: nn.Module,
    calls: Calls,
    others: Calls | None,
) -> Iterator[_Trial]:
    # Evaluation of the first case comes first: a wrong way fails there.
    cases = [tree_map(_leaf, tuple(call)) for call in calls(twin)]
    yield from (_Trial(case, training) for training in (False, True) for case in cases)
    yield from (_Trial(tree_map(_leaf, tuple(call))) for call in (others(twin) if others else ()))


def _twin(module: nn.Module) -> nn.Module:
    """A copy with other numbers: parameters drawn anew, so that no norm is still 1 and no weight 0; without hooks."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, value in part.__dict__.items():
            if isinstance(value, Tensor):
                memo[id(value)] = _cast(value)
            elif name.endswith("_hooks"):
                memo[id(value)] = OrderedDict()
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                if nn.parameter.is_lazy(parameter):
                    raise Mismatch("it has no parameters before its first call")
                memo[id(parameter)] = nn.Parameter(_drawn(parameter))
        for buffer in part._buffers.values():
            if buffer is not None:
                if buffer.is_meta:
                    raise Mismatch("its buffers hold no numbers yet, on the meta device")
                memo[id(buffer)] = _cast(buffer)
    try:
        twin = copy.deepcopy(module, memo)
    except Exception as error:
        raise Mismatch(f"it cannot be copied for a trial ({_line(error)})") from error
    for part in twin.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
    return twin


def _drawn(like: Tensor) -> Tensor:
    if like.ndim < 2:
        return torch.rand(like.shape, dtype=torch.float64) + 0.5
    # Evenly spread, which is drawn in a third of the time; of variance 1 over what a row sums.
    return (torch.rand(like.shape, dtype=torch.float64) - 0.5) * math.sqrt(12 / max(like[0].numel(), 1))


def _cast(value: Tensor) -> Tensor:
    value = value.detach().to("cpu", copy=True)
    return value.double() if value.is_floating_point() else value


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _cast(value).requires_grad_(value.is_floating_point() and not isinstance(value, nn.Buffer))


def _results(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> tuple[list[Any], list[Tensor | None]]:
    """Outputs, flat, and in training the gradients of the inputs and parameters of their weighted sum."""
    module.train(training)
    torch.default_generator.manual_seed(1)
    try:
        with torch.set_grad_enabled(training):
            flat, structure = tree_flatten(module(*inputs))
    except Exception as error:
        raise Mismatch(
            f"{type(module).__name__} cannot be called with {_described(inputs)} ({_line(error)})"
        ) from error
    outputs = [value for value in flat if isinstance(value, Tensor)]
    leaves = [value for value in tree_flatten(inputs)[0] if isinstance(value, Tensor) and value.requires_grad]
    leaves += [parameter for _, parameter in sorted(module.named_parameters())]
    sums = [(value * _weights(value)).sum() for value in outputs if value.requires_grad]
    found = torch.autograd.grad(sums, leaves, allow_unused=True) if sums else [None] * len(leaves)
    return [structure, *(value.detach() if isinstance(value, Tensor) else value for value in flat)], list(found)


def _weights(value: Tensor) -> Tensor:
    return torch.linspace(-1, 1.5, max(value.numel(), 1), dtype=value.dtype)[: value.numel()].view(value.shape)


def _difference(ours: tuple[list[Any], list[Tensor | None]], want: tuple[list[Any], list[Tensor | None]]) -> float:
    """Largest difference of two results, over the largest value of each tensor."""
    if ours[0][0] != want[0][0]:
        raise Mismatch(f"it returns {_described(want[0][1:])} in another form")
    pairs = [("its result", a, b, 0.0) for a, b in zip(ours[0][1:], want[0][1:], strict=True)]
    largest = max((float(b.abs().max()) for b in want[1] if b is not None and b.numel()), default=0.0)
    # A gradient that is zero but for rounding is measured by the others.
    pairs += [("its gradient", a, b, 1e-3 * largest) for a, b in zip(ours[1], want[1], strict=True)]
    worst = 0.0
    for name, a, b, least in pairs:
        if isinstance(b, Tensor) and isinstance(a, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise Mismatch(f"{name} is {_described([b])}, not {_described([a])}")
            if name == "its result" and b.is_contiguous() and not a.is_contiguous():
                raise Mismatch("its result is contiguous, which callers may rely on")
            if not b.numel():
                continue
            scale = max(float(b.abs().max()), least) or 1.0
            worst = max(worst, float((a - b).abs().max()) / scale) if torch.isfinite(a).all() else math.inf
            if not worst <= TOLERANCE:
                raise Mismatch(f"{name} differs by {worst:.1g} of its size on random numbers")
        elif isinstance(b, Tensor) or isinstance(a, Tensor):
            if not _is_zero(a, least) or not _is_zero(b, least):  # no gradient is a gradient of zero
                raise Mismatch(f"{name} is there for one and not for the other")
        elif a != b:
            raise Mismatch(f"{name} is {b!r}, not {a!r}")
    return worst


def _is_zero(value: Any, scale: float) -> bool:
    return value is None or (isinstance(value, Tensor) and float(value.abs().max()) <= TOLERANCE * scale)


def _described(values: Any) -> str:
    return ", ".join(
        f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        for value in tree_flatten(values)[0]
    )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
