"""Comparison of the network with a recorded run of the authors' code."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.losses import LossWeights, self_guiding_losses
from msformer_fast.model import MSFormer
from msformer_fast.process import cudnn_settings
from msformer_fast.self_guiding import self_guide

#: Largest relative error that passes, by dtype. The float32 bounds leave room for the loop's own amplification
#: of rounding over the recorded steps.
BOUNDS = {torch.float64: {"first": 1e-9, "history": 1e-9}, torch.float32: {"first": 1e-3, "history": 1e-2}}

#: Parameters whose gradient is zero in theory (a softmax or a training-mode norm removes them): rounding noise.
NOISE = ("attn.keys.bias", "mlp.fc2.bias", "patch_embed_s.proj.bias", "patch_embed_l.proj.bias")


@dataclass(frozen=True)
class Comparison:
    """One compared quantity: its relative error (norm of the difference over the norm recorded) and the bound.

    A bound of ``None`` marks a figure that is shown and not judged.
    """

    name: str
    error: float
    bound: float | None

    @property
    def passed(self) -> bool:
        return self.bound is None or self.error <= self.bound


@cudnn_settings(allow_tf32=False)
def compare(
    path: str | Path,
    *,
    memory: str = "fast",
    backend: str | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    steps: int | None = None,
) -> list[Comparison]:
    """Run the recorded steps again and compare every recorded quantity, convolutions in float32 without tf32.

    Args:
        path: ``.npz`` with ``meta`` (channels, side, coarse blocks, fine blocks, patch, steps), ``weights``,
            ``input``, ``param/NAME``, ``logits``, ``attention``, ``context_fine``, ``context_coarse``,
            ``grad/NAME``, ``history`` (steps, 5) and ``labels_after``.
        memory, backend: of every op.
        dtype: ``torch.float64`` or ``torch.float32``.
        device: to run on.
        steps: of the loop to run after the comparison of the first step, at most as many as were recorded; ``None`` for
            all. Only all tell ``labels_after``.

    Returns:
        One entry a quantity. In float32 ``labels_after`` is shown and not judged: the loop amplifies rounding.

    Raises:
        InputError: the file is missing or no such record.
    """
    recorded = _read(path)
    channels, _side, coarse_depth, fine_depth, patch, recorded_steps = (int(v) for v in recorded["meta"])
    weights = LossWeights(*(float(v) for v in recorded["weights"]))

    def tensor(name: str) -> Tensor:
        values = torch.from_numpy(recorded[name])
        return values.to(device, dtype) if values.is_floating_point() else values.to(device)

    image = tensor("input")
    model = MSFormer(
        image.shape[1],
        channels,
        recorded["logits"].shape[1],
        (fine_depth, coarse_depth),
        patch,
        memory=memory,
        backend=backend,
    ).to(device, dtype)
    state = {name.removeprefix("param/"): tensor(name) for name in recorded if name.startswith("param/")}
    model.load_state_dict(state)

    first, later = BOUNDS[dtype]["first"], BOUNDS[dtype]["history"]
    scores = model(image)
    losses = self_guiding_losses(scores, weights, backend=backend)
    losses.total.backward()
    attention = ops.stability_attention(scores.queries, scores.keys)
    rows = [
        Comparison(name, _relative(value, tensor(name)), first)
        for name, value in (
            ("logits", scores.logits),
            ("attention", attention),
            ("context_fine", scores.context_fine),
            ("context_coarse", scores.context_coarse),
        )
    ]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.norm()) for gradient in gradients.values() if gradient is not None)
    for name, gradient in gradients.items():
        wanted = tensor(f"grad/{name}")
        assert gradient is not None
        if name.endswith(NOISE):
            rows.append(Comparison(f"grad/{name} (zero)", float(gradient.norm()) / largest, first))
        else:
            rows.append(Comparison(f"grad/{name}", _relative(gradient, wanted), first))

    steps = recorded_steps if steps is None else min(steps, recorded_steps)
    if steps < 1:
        return rows
    model.load_state_dict(state)
    # No iteration may stop the recorded run early: it took exactly this many steps.
    guided = self_guide(model, image, weights=weights, max_iterations=steps, min_labels=0)
    history = recorded["history"][:steps]
    for index, (iteration, wanted_row) in enumerate(zip(guided.history, history, strict=True)):
        for column, name in enumerate(("total", "clustering", "consistency", "stability")):
            # Against the total: a saturated stability loss of 1e-14 is rounding in the recorded run itself.
            error = abs(getattr(iteration, name) - wanted_row[column]) / abs(wanted_row[0])
            rows.append(Comparison(f"step {index} {name}", float(error), later if index else first))
        rows.append(Comparison(f"step {index} label count", abs(iteration.label_count - wanted_row[4]), 0.0))
    if steps < recorded_steps:
        return rows
    different = float((guided.labels[0].cpu().numpy() != recorded["labels_after"]).mean())
    rows.append(Comparison("labels_after (share)", different, 0.0 if dtype == torch.float64 else None))
    return rows


def _relative(value: Tensor, wanted: Tensor) -> float:
    return float((value.detach() - wanted).norm() / wanted.norm())


def _read(path: str | Path) -> dict[str, NDArray[np.generic]]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a recorded run (.npz)")
    needed = {"meta", "weights", "input", "logits", "attention", "context_fine", "context_coarse", "history"}
    needed |= {"labels_after"}
    try:
        with np.load(path, allow_pickle=False) as archive:
            recorded = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{path}: not a recorded run (.npz): {str(error).splitlines()[0]}") from error
    missing = sorted(needed - recorded.keys())
    if missing:
        raise InputError(f"{path}: not a recorded run: {', '.join(missing)} missing")
    return recorded
