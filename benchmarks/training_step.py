"""One step of the self-guided loop on a random image, to be timed or counted."""

from __future__ import annotations

from collections.abc import Callable

import torch

from msformer_fast import MSFormer, self_guiding_losses

#: Of the image.
IN_CHANNELS = 3


def training_step(
    backend: str,
    side: int,
    channels: int,
    clusters: int,
    *,
    memory: str = "fast",
    depth: int = 2,
    patch: int = 32,
    device: str = "cpu",
    cross_scale: str = "none",
) -> Callable[[], None]:
    """Forward, losses, backward and update of a fresh network on one random square image, as the loop runs them; the
    first call makes the optimiser's buffers."""
    with torch.device(device):
        model = MSFormer(
            IN_CHANNELS,
            channels,
            clusters,
            depth,
            patch,
            seed=0,
            memory=memory,
            backend=backend,
            cross_scale=cross_scale,
        )
        image = torch.rand(1, IN_CHANNELS, side, side).contiguous(memory_format=torch.channels_last)
        seed = torch.ones(())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)

    def step() -> None:
        self_guiding_losses(model(image), backend=backend).total.backward(seed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
