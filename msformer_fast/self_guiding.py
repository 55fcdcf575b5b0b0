"""The self-guided loop: a fresh network teaches itself on one image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msformer_fast.capture import Launched, Runner, captures, device_of
from msformer_fast.descent import Descent
from msformer_fast.errors import DivergenceError, InputError
from msformer_fast.float32_products import asked_for, check_precision
from msformer_fast.losses import Losses, LossWeights, self_guiding_losses
from msformer_fast.model import MSFormer
from msformer_fast.reference.overlap_embedding import channels_last


@dataclass(frozen=True)
class Iteration:
    """One iteration of the loop; losses are weighted, as they enter the total.

    Attributes:
        index: 0 for the first.
        total, clustering, consistency, stability: losses before the step of this iteration.
        label_count: distinct labels before the step (of the image that has most, in a batch).
        seconds: since the start of the loop.
    """

    index: int
    total: float
    clustering: float
    consistency: float
    stability: float
    label_count: int
    seconds: float


Callback = Callable[[Iteration], object]


@dataclass(frozen=True)
class Guided:
    """What the loop leaves behind.

    Attributes:
        labels: (B, H, W) int64, argmax of the forward after the last step, on the model's device.
        history: one entry an iteration.
        stopped: ``"min_labels"``, ``"patience"``, ``"max_iterations"`` or ``"callback"``.
        scores: (B, R, H, W) float16, the scores of the R largest clusters in the same forward, largest first;
            ``None`` where none were to be kept.
        kept: (B, R) int64, which clusters these are.
    """

    labels: Tensor
    history: tuple[Iteration, ...]
    stopped: str
    scores: Tensor | None = None
    kept: Tensor | None = None


def self_guide(
    model: MSFormer,
    image: Tensor,
    *,
    weights: LossWeights | None = None,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    max_iterations: int = 50,
    min_labels: int = 3,
    patience: int | None = None,
    capture: str = "auto",
    precision: str | None = None,
    callback: Callback | None = None,
    keep_scores: int = 0,
) -> Guided:
    """Train ``model`` in place on ``image`` by its own losses, then score it once more.

    Norms stay in training mode throughout, the last forward included, as in the authors' code.

    On a CUDA or HIP device the host never waits for work that is under way: the numbers of an iteration are read when
    the next one's forward and backward are queued. That forward is the closing one if the loop ends there, so that
    labels, parameters, running statistics and history are those of a loop that waits. Two things differ: a callback
    hears of an iteration that much later; and when a loss diverges its step has been taken, and a forward behind it.

    Args:
        model: on the image's device, in its dtype.
        image: (B, in_channels, H, W) in [0, 1].
        weights, learning_rate, momentum, max_iterations, min_labels, patience, precision, callback: see
            :func:`msformer_fast.segment`.
        capture: ``"auto"`` replays an iteration as two CUDA graphs, from the fourth on, where there is a CUDA or HIP
            device, no module or parameter has hooks, and there are iterations enough; where capturing fails the loop
            goes on without. ``"always"`` raises where it cannot. The graphs' memory is held until the end.
        keep_scores: of how many clusters, the largest of each image, to give the scores as well.

    Raises:
        InputError: ``capture`` or ``precision`` is no known name, or ``keep_scores`` is negative.
        BackendError: ``capture="always"``, and it cannot be; the message says why.
        DivergenceError: a loss became NaN or infinite; off a GPU the step of that iteration is not taken.
    """
    if keep_scores < 0:
        raise InputError(f"self_guide: keep_scores must be 0 or more, got {keep_scores}")
    check_precision(precision)
    device = device_of(image)
    captured = captures(capture, model, device, max_iterations)
    # Fused, a step reads each parameter, gradient and buffer once.
    fused = image.device.type in ("cuda", "cpu")
    descent = Descent(model.parameters(), learning_rate, momentum, fused)
    runner = Runner(
        _Step(model, image, weights, descent, keep_scores, device.overlaps),
        device,
        captured,
        must=capture == "always",
    )
    log = _Log(learning_rate, min_labels, patience, callback)
    stopped: str | None = None
    maps: tuple[Tensor, ...] | None = None
    model.train()
    descent.clear()
    try:
        with asked_for(precision), device.running():
            previous: Launched | None = None
            for _ in range(max_iterations):
                current = runner.forward_backward()
                if device.overlaps:
                    if previous is not None:
                        stopped = log.add(log.read(previous))
                    if stopped is not None:
                        maps = current.maps
                        break
                    runner.update()
                    previous = current
                else:
                    values = log.read(current)
                    runner.update()
                    stopped = log.add(values)
                    if stopped is not None:
                        break
            else:
                stopped = None if previous is None else log.add(log.read(previous))
            if maps is None:
                maps = runner.maps()
        # Copies, made on the caller's stream: the maps' own memory belongs to the device's stream or to a graph.
        labels, *kept = (each.to(each.dtype if each.is_floating_point() else torch.int64, copy=True) for each in maps)
    finally:
        descent.clear()
    return Guided(labels, tuple(log.history), stopped or "max_iterations", *kept)


class _Step:
    """An iteration in two parts, neither of which waits for the device; and its forward alone."""

    def __init__(
        self,
        model: MSFormer,
        image: Tensor,
        weights: LossWeights | None,
        descent: Descent,
        keep_scores: int = 0,
        overlaps: bool = False,
    ) -> None:
        self._model = model
        self._image = channels_last(image)  # as both embeddings read it, once for all iterations
        self._one: Tensor | None = None
        self._weights = weights
        self._descent = descent
        self._keep_scores = keep_scores
        # Where work overlaps the host, the maps of any iteration may be the last ones.
        self._keep_in_iterations = keep_scores if overlaps else 0
        self._overlaps = overlaps

    def forward_backward(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Four losses and the label count, for one transfer together; and the maps."""
        losses, maps = self._forward(self._keep_in_iterations)
        # The gradient of the total, made once for all iterations where a launch counts. On the CPU it does not, and to
        # check a gradient that is given PyTorch imports a third of a second of symbolic algebra.
        if self._one is None and self._overlaps:
            self._one = torch.ones_like(losses.total)
        losses.total.backward(self._one)
        return losses.numbers, maps

    def update(self) -> None:
        self._descent.step()

    def clear(self) -> None:
        self._descent.clear()

    def maps(self) -> tuple[Tensor, ...]:
        # With gradients the kernels of an iteration run, not others that round differently. On the CPU the numbers are
        # the same without, for less memory.
        with torch.set_grad_enabled(self._image.device.type != "cpu"):
            return self._forward(self._keep_scores)[1]

    def _forward(self, keep: int) -> tuple[Losses, tuple[Tensor, ...]]:
        scores = self._model(self._image)
        losses = self_guiding_losses(scores, self._weights, backend=self._model.backend)
        maps = (losses.labels,)
        return losses, (*maps, *_largest(scores.logits.detach(), losses.labels, keep)) if keep else maps


def _largest(logits: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scores (B, R, H, W) and numbers (B, R) of the ``count`` clusters with most pixels; the host does not wait."""
    # Sorted, not counted by atomics: nearly all pixels are of a few clusters, and would queue for their counters.
    flat = labels.flatten(1).sort(dim=1).values
    numbers = torch.arange(logits.shape[1], dtype=flat.dtype, device=flat.device).repeat(len(flat), 1)
    sizes = torch.searchsorted(flat, numbers, right=True) - torch.searchsorted(flat, numbers)
    kept = sizes.argsort(dim=1, descending=True, stable=True)[:, :count]
    scores = logits.gather(1, kept[:, :, None, None].expand(-1, -1, *logits.shape[2:]))
    most = torch.finfo(torch.float16).max
    return scores.clamp(-most, most).half(), kept


class StopRule:
    """Whether the loop stops behind an iteration: see ``min_labels`` and ``patience`` of :func:`msformer_fast.segment`.

    It is asked about every iteration once, in order.
    """

    def __init__(self, min_labels: int, patience: int | None) -> None:
        self._min_labels, self._patience = min_labels, patience
        self._fewest, self._fewest_at = math.inf, 0

    def __call__(self, index: int, label_count: float) -> str | None:
        """``"min_labels"``, ``"patience"``, or ``None`` to go on."""
        if label_count < self._fewest:
            self._fewest, self._fewest_at = label_count, index
        if label_count <= self._min_labels:
            return "min_labels"
        return "patience" if self._patience is not None and index - self._fewest_at >= self._patience else None


class _Log:
    """The history, and what it says about going on."""

    def __init__(self, learning_rate: float, min_labels: int, patience: int | None, callback: Callback | None) -> None:
        self.history: list[Iteration] = []
        self._started = time.perf_counter()
        self._learning_rate = learning_rate
        self._stop = StopRule(min_labels, patience)
        self._callback = callback

    def read(self, launched: Launched) -> list[float]:
        """Losses and label count of the next iteration, once they are there."""
        values = launched.read()
        total, clustering, consistency, stability, _ = values
        if not math.isfinite(total):
            raise DivergenceError(
                f"the loss became {total} in iteration {len(self.history)} (clustering {clustering:.3g}, consistency "
                f"{consistency:.3g}, stability {stability:.3g}); try a smaller learning rate than "
                f"{self._learning_rate:g}"
            )
        return values

    def add(self, values: list[float]) -> str | None:
        """Note an iteration; why the loop stops behind it, or ``None``."""
        total, clustering, consistency, stability, label_count = values
        seconds = time.perf_counter() - self._started
        iteration = Iteration(len(self.history), total, clustering, consistency, stability, int(label_count), seconds)
        self.history.append(iteration)
        if self._callback is not None and self._callback(iteration) is False:
            return "callback"
        return self._stop(iteration.index, label_count)
