"""The choice of backend: the fastest that can run, or the one that was asked for, or the reason why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from msformer_fast.errors import BackendError, InputError

#: Every backend, the fastest first.
BACKENDS = ("triton", "torch", "reference")

_log = logging.getLogger("msformer_fast")
_logged: set[tuple[str, str]] = set()


def not_built(op: str, backend: str) -> Callable[[], str]:
    """A refusal for a body that this version does not have."""
    return lambda: f'{op}: this version has no "{backend}" backend for this op; use backend="reference" or None'


def choose(op: str, backend: str | None, why_not: Mapping[str, Callable[[], str | None]]) -> str:
    """Name of the backend that will run.

    Args:
        op: name of the op, for messages.
        backend: one of :data:`BACKENDS`, or ``None`` for the fastest that can run.
        why_not: for each backend but ``"reference"`` (which always can) a function that gives its refusal in
            one sentence, or ``None`` if it can run.

    Raises:
        InputError: ``backend`` is no known name.
        BackendError: the backend asked for by name refuses.
    """
    if backend is not None and backend not in BACKENDS:
        raise InputError(f"{op}: backend must be None or one of {', '.join(BACKENDS)}; got {backend!r}")
    for name in BACKENDS if backend is None else (backend,):
        refusal = why_not[name]() if name in why_not else None
        if refusal is None:
            return name
        if backend is not None:
            raise BackendError(refusal)
        if (op, refusal) not in _logged:
            _logged.add((op, refusal))
            _log.info(refusal)
    raise AssertionError("the reference refuses nothing")
