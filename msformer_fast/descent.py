"""Gradient descent with momentum, as ``torch.optim.SGD`` does it, whose import of PyTorch's compiler takes a second."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class Descent:
    """Steps of ``torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)``, to the bit.

    v = momentum v + g, p = p - learning_rate v; v is g at the first step.

    Args:
        parameters: leaves on one device.
        learning_rate, momentum: 0 or more.
        fused: whether a step reads each parameter, gradient and buffer once (CPU and CUDA alone).
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float, momentum: float, fused: bool) -> None:
        self._parameters = list(parameters)
        self._velocities: list[Tensor | None] = [None] * len(self._parameters)
        self._learning_rate, self._momentum, self._fused = learning_rate, momentum, fused

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        moved = [index for index, parameter in enumerate(self._parameters) if parameter.grad is not None]
        velocities = [self._velocities[index] for index in moved]
        sgd(
            [self._parameters[index] for index in moved],
            [gradient for index in moved if (gradient := self._parameters[index].grad) is not None],
            velocities,
            fused=self._fused,
            foreach=not self._fused,
            lr=self._learning_rate,
            momentum=self._momentum,
            weight_decay=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for index, velocity in zip(moved, velocities, strict=True):
            self._velocities[index] = velocity

    def clear(self) -> None:
        """Free the gradients."""
        for parameter in self._parameters:
            parameter.grad = None
