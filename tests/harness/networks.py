"""Whole networks with modules that ``accelerate`` knows, and what one step of them gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests import published_networks as published
from tests.swin_blocks import monai_swin, timm_swin


def timm_net() -> nn.Module:
    timm_swin()
    import timm

    return timm.create_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=24, depths=(2, 2, 2, 2))


def monai_net() -> nn.Module:
    return monai_swin().SwinUNETR(3, 2, feature_size=12, spatial_dims=2)


#: network, how many modules have a drop-in
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "MS-Former": (published.AuthorsNetwork, 4),
    "DAE-Former": (published.DAEFormer, 13),
    "SegFormer": (published.SegFormer, 4),
    "MISSFormer": (lambda: published.SegFormer(mlp="mix_skip"), 4),
    "Swin-Unet": (published.SwinUnetStage, 4),
    "timm Swin": (timm_net, 8),
    "MONAI Swin UNETR": (monai_net, 8),
}


def net(name: str = "DAE-Former") -> nn.Module:
    return NETWORKS[name][0]()


def batch(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size)


def loss_of(model: nn.Module, image: Tensor, seed: int = 3) -> Tensor:
    """Of every output; drop path draws from the seed."""
    torch.manual_seed(seed)
    out = model(image)
    return sum((value.square().mean() for value in ((out,) if isinstance(out, Tensor) else out)), torch.zeros(()))


def results(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    loss = loss_of(model, image)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {"loss": loss.detach()} | {n: g for n, g in zip(names, gradients, strict=True) if g is not None}
