"""What surrounds every launch of an op's kernels: the tensors' own device, and the name that a profiler shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from msformer_fast.profiling import nvtx_range


@contextlib.contextmanager
def launching(name: str, tensor: Tensor) -> Iterator[None]:
    """Kernels launched inside run on the device of ``tensor``, whichever device is current, in an NVTX range."""
    device = tensor.device
    chosen = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with nvtx_range(name), chosen:
        yield


@contextlib.contextmanager
def without_autocast(name: str, tensor: Tensor) -> Iterator[None]:
    """A body of ``identities`` runs inside with autocast off, for it chooses its dtypes itself, in an NVTX range."""
    kind = tensor.device.type
    # Autocast that is off already is not turned off again: that costs more than all else here.
    cast = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
    with nvtx_range(name), cast:
        yield
