"""What ``torch.compile`` is told about functions of this package, without importing it: its import takes a second.

A command that segments one image never compiles, and PyTorch imports its compiler with the first decorator
``torch.compiler.assume_constant_result`` and the first call of a custom op. What is done here leads to the same marks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_COMPILER = "torch._dynamo"
# Where PyTorch keeps the hidden form of a kernel.
_HIDDEN = "__dynamo_disable"


def constant_result(function: _Function) -> _Function:
    """A decorator: compiled code may take the function's result as a constant; it is called when it is compiled.

    As ``torch.compiler.assume_constant_result``.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def hide_late(op: Any) -> None:
    """Have a custom op (of ``torch.library.custom_op``) hide its kernel from the compiler once that is imported.

    PyTorch hides it at the first call, and imports the compiler to do so. It keeps the hidden kernel as an attribute of
    the plain one: here that attribute is the plain one until the compiler is there. A PyTorch that works in another way
    is left to itself.
    """
    for hiding in getattr(op, "_backend_fns", {}).values():
        kernel = getattr(hiding, "__wrapped__", None)
        if kernel is not None:
            setattr(kernel, _HIDDEN, _Unhidden(kernel, hiding))


class _Unhidden:
    """Stands in for a kernel's hidden form until the compiler is imported, and takes itself away then."""

    def __init__(self, kernel: Any, hiding: Any) -> None:
        self._kernel, self._hiding = kernel, hiding

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if _COMPILER not in sys.modules:
            return self._kernel(*arguments, **named)
        if getattr(self._kernel, _HIDDEN, None) is self:
            delattr(self._kernel, _HIDDEN)
        return self._hiding(*arguments, **named)
