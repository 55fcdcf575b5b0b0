"""Runs of the loop on one image, kept on disk, so that what comes after them is tried without running it again."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msformer_fast.errors import DivergenceError, InputError
from msformer_fast.files import atomic, show
from msformer_fast.float32_products import told
from msformer_fast.losses import LossWeights
from msformer_fast.model import MSFormer
from msformer_fast.self_guiding import Callback, Iteration, self_guide

#: Scores are kept of this many clusters, the largest: the loop leaves 3 to 6, seldom more than 12.
KEPT_SCORES = 12
# Changes when a run's file, or what a setting means, does.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Run:
    """What one run of the loop leaves.

    Attributes:
        labels: (h, w) unsigned integer, the cluster of every pixel that the network saw.
        scores: (R, h, w) float16, scores of the R largest clusters; ``kept`` (R,) says which.
        history: one entry an iteration.
        stopped: ``"min_labels"``, ``"patience"``, ``"max_iterations"`` or ``"callback"``.
        seconds: that it took.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    scores: NDArray[np.float16]
    kept: NDArray[np.int64]
    history: tuple[Iteration, ...]
    stopped: str
    seconds: float


def guide_image(
    seen: NDArray[np.float32],
    settings: dict[str, Any],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    callback: Callback | None,
) -> Run:
    """Draw a network from ``seed`` and let it guide itself on ``seen`` (h, w, C).

    ``settings``: as in :class:`msformer_fast.Segmentation`.

    Raises:
        DivergenceError: a loss became NaN or infinite, or the scores NaN.
    """
    started = time.perf_counter()
    model, x = network_and_image(seen, settings, seed, device, dtype)
    guided = self_guide(model, x, callback=callback, keep_scores=KEPT_SCORES, **loop_settings(settings))
    assert guided.scores is not None and guided.kept is not None
    scores = guided.scores[0].cpu().numpy()
    if np.isnan(scores).any():  # the last step was taken on losses that were finite still
        raise DivergenceError(
            f"the scores became NaN with the step of iteration {len(guided.history) - 1}; try a smaller learning rate "
            f"than {settings['learning_rate']:g}"
        )
    return Run(
        guided.labels[0].cpu().numpy().astype(label_dtype(settings["clusters"])),
        scores,
        guided.kept[0].cpu().numpy(),
        guided.history,
        guided.stopped,
        time.perf_counter() - started,
    )


def network_and_image(
    seen: NDArray[np.float32], settings: dict[str, Any], seed: int, device: torch.device, dtype: torch.dtype
) -> tuple[MSFormer, Tensor]:
    """The network that is drawn for ``seen`` (h, w, C), and that image as it takes it, (1, C, h, w)."""
    sizes = seen.shape[2], settings["channels"], settings["clusters"], settings["depth"], settings["patch"]
    options = {name: settings[name] for name in ("memory", "cross_scale", "backend")}
    model = MSFormer(*sizes, seed=seed, device=device, dtype=dtype, **options)
    return model, torch.from_numpy(np.ascontiguousarray(seen)).permute(2, 0, 1)[None].to(device=device, dtype=dtype)


def loop_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that :func:`msformer_fast.self_guide` takes."""
    names = ("learning_rate", "momentum", "max_iterations", "min_labels", "patience", "capture", "precision")
    return {"weights": LossWeights(**settings["weights"]), **{name: settings[name] for name in names}}


def label_dtype(clusters: int) -> type[np.unsignedinteger[Any]]:
    """The narrowest that holds every label."""
    return np.uint8 if clusters <= 256 else np.uint16 if clusters <= 2**16 else np.uint32


def run_path(folder: Path, seen: NDArray[np.float32], settings: dict[str, Any], seed: int) -> Path:
    """Where the run of this image with these settings and this seed is kept: named by a hash of all three.

    Whatever leaves the result alike for a user (memory, capture, the rule, how many seeds) does not count; the device
    does, since its numbers round differently.
    """
    free = ("rule", "preset", "size", "seed", "seeds", "memory", "capture", "device")
    named = {name: value for name, value in settings.items() if name not in free}
    kind = settings["device"].partition(":")[0]
    precision = named.pop("precision", None) or told(kind)
    if precision != "highest":  # which has no name, as in runs that were kept before there was a choice
        named["precision"] = precision
    named |= {"version": _VERSION, "seed": seed, "shape": seen.shape, "device": kind}
    digest = hashlib.sha256(json.dumps(named, sort_keys=True, default=list).encode())
    digest.update(np.ascontiguousarray(seen).tobytes())
    return folder / f"{digest.hexdigest()[:32]}.npz"


def save_run(path: Path, run: Run) -> None:
    """Write a run as ``.npz``, atomically. Raises InputError if it cannot be written."""
    record = {"history": [asdict(each) for each in run.history], "stopped": run.stopped, "seconds": run.seconds}
    with atomic(path) as file:
        np.savez(file, labels=run.labels, scores=run.scores, kept=run.kept, record=json.dumps(record))


def load_run(path: Path) -> Run:
    """Read what :func:`save_run` wrote. Raises InputError if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            record = json.loads(str(file["record"]))
            history = tuple(Iteration(**each) for each in record["history"])
            maps = (file["labels"], file["scores"], file["kept"])
    except Exception as error:  # zipfile, NumPy and JSON each have their own
        raise InputError(f"{show(path)}: no whole run of the loop ({error}); delete the file") from error
    return Run(*maps, history, record["stopped"], record["seconds"])
