"""Tensors without numbers: whatever would make the host wait for one raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.without_data import without_launches


@contextlib.contextmanager
def without_data(*tensors_of: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Everything inside runs on tensors that hold no data, so that whatever reads a number raises: ``.item()``,
    ``.tolist()``, ``if tensor:``, ``nonzero``, a copy to NumPy. Launchers of kernels run too; launches do nothing.

    Args:
        tensors_of: modules whose parameters and buffers lose their data, for good.

    Yields:
        The same for a tensor.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    with pytest.MonkeyPatch.context() as patch, without_launches():
        for name, op in OPDEFS.items():
            if name.startswith("msformer_fast::"):
                patch.setattr(op, "_abstract_fn", op._init_fn)
        for module in (each for root in tensors_of for each in root.modules()):
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(mode.from_tensor(parameter.data))
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = mode.from_tensor(buffer)
        with mode:
            yield mode.from_tensor
