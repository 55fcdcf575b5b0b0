"""What kernels are launched with: which constexprs, so that a test sees a launch that would compile anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import triton.language as tl


@contextlib.contextmanager
def constexprs_of_launches() -> Iterator[set[tuple[Any, ...]]]:
    """The set of (kernel, constexprs and options) of every interpreted launch inside the block."""
    from triton.runtime import interpreter

    seen: set[tuple[Any, ...]] = set()
    original = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.fn.__code__.co_varnames[: self.fn.__code__.co_argcount]
        annotations = {name: str(kind) for name, kind in self.fn.__annotations__.items()}
        given = dict(zip(names, args, strict=False)) | kwargs
        fixed = {n: v for n, v in given.items() if "constexpr" in annotations.get(n, "") or n not in names}
        seen.add((self.fn.__name__, *sorted((n, _plain(v)) for n, v in fixed.items())))
        return original(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = call
    try:
        yield seen
    finally:
        interpreter.GridExecutor.__call__ = original


def _plain(value: Any) -> str:
    return str(value.value if isinstance(value, tl.constexpr) else value)
