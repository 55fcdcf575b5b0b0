"""How float32 is rounded in a measurement, products and convolutions alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msformer_fast.float32_products import asked_for, lower_allowed
from msformer_fast.process import cudnn_settings


@contextlib.contextmanager
def products(dtype: str) -> Iterator[None]:
    """Inside, float32 products are rounded as the name says, ``"tf32"`` or any other; convolutions too."""
    with asked_for("high" if dtype == "tf32" else "highest"), convolutions_as_products():
        yield


@contextlib.contextmanager
def convolutions_as_products() -> Iterator[None]:
    """Inside, cuDNN rounds convolutions to tf32 where products may be, and only there. Its own default is that it does,
    whatever :func:`torch.set_float32_matmul_precision` was told."""
    with cudnn_settings(allow_tf32=lower_allowed("cuda")):
        yield
