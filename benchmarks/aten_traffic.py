"""What PyTorch's own operators read and write, and how many there are, counted call by call.

On a GPU an eager operator is about one launch, and reads its arguments and writes its results once; convolutions and
their gradients, reductions and layout copies may take more. So both counts are lower bounds of what a card does.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

#: Operators that launch nothing: they make no values, or none on the device.
QUIET = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_local_scalar_dense", "_unsafe_view", "detach", "promote_types"),
)


class AtenTraffic(TorchDispatchMode):
    """Counts inside a ``with`` block.

    Args:
        inside: look into the bodies of this package's registered ops; else they count for nothing.

    Attributes:
        launches: calls of operators that compute.
        bytes: of their tensor arguments and results; a tensor expanded over an axis counts what it holds.
        calls: launches by operator.
    """

    def __init__(self, inside: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = inside
        self.launches, self.bytes = 0, 0
        self.calls: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "msformer_fast" and self.inside:
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **kwargs)
        out = func(*args, **kwargs)
        name = func.name().removeprefix("aten::").partition(".")[0]
        read = {id(t): t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        written = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        if func.namespace != "aten" or name in QUIET or _is_view(func, read.values(), written):
            return out
        self.launches += 1
        self.calls[name] += 1
        if func._schema.is_mutable and not written:  # a list of tensors changed in place
            written = [t for t in tree_flatten(args[0])[0] if isinstance(t, Tensor)]
        self.bytes += sum(size_of(tensor) for tensor in (*read.values(), *written))
        return out


def _is_view(func: Any, given: Iterable[Tensor], made: Iterable[Tensor]) -> bool:
    """Whether the operator only looked at its argument in another way; ``to`` and ``contiguous`` may also copy."""
    returned = [r.alias_info for r in func._schema.returns]
    if not returned or any(info is None or info.is_write for info in returned):
        return False
    there = {tensor.untyped_storage()._cdata for tensor in given}
    return all(tensor.untyped_storage()._cdata in there for tensor in made)


def size_of(tensor: Tensor) -> int:
    """Bytes of the distinct elements of a view: an axis that was expanded has one."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(length if stride else min(length, 1) for length, stride in pairs)
