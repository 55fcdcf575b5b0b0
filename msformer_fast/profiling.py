"""NVTX ranges around each op's forward and backward; off by default, and then no more than one test of a flag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msformer_fast.errors import InputError

_enabled = False


def enable_nvtx(enabled: bool = True) -> None:
    """Name each op's forward and backward in Nsight Systems (``msformer_fast.clustering_loss.forward`` ...).

    Args:
        enabled: ``False`` stops it.

    Raises:
        InputError: the package ``nvtx`` is not installed.
    """
    global _enabled
    if enabled:
        try:
            import nvtx  # noqa: F401
        except ImportError:
            raise InputError("enable_nvtx: needs the package nvtx; pip install 'msformer-fast[bench]'") from None
    _enabled = enabled


def nvtx_range(name: str) -> contextlib.AbstractContextManager[object]:
    """A range of that name where NVTX is enabled, else nothing."""
    return _range(name) if _enabled else contextlib.nullcontext()


@contextlib.contextmanager
def _range(name: str) -> Iterator[None]:
    import nvtx

    with nvtx.annotate(f"msformer_fast.{name}", domain="msformer_fast"):
        yield
