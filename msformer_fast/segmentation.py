"""One image segmented: a fresh network teaches itself on it, and its argmax is the segmentation."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msformer_fast.consensus import consensus_labels
from msformer_fast.errors import InputError
from msformer_fast.files import check_output_folder, show
from msformer_fast.foreground import LUNG_RULES, Foreground, Maps, check_modality, clusters_in, foreground_of_runs
from msformer_fast.formats import open_image
from msformer_fast.images import MIN_SIDE, fit_size, resize_image, resize_nearest
from msformer_fast.inputs import as_image
from msformer_fast.losses import LossWeights
from msformer_fast.margin import Margin, find_margin
from msformer_fast.outlines import carry_up, carry_up_labels
from msformer_fast.presets import DEFAULT, PRESETS, preset_name
from msformer_fast.prompts.carry import Neighbour, carried, check_neighbour
from msformer_fast.prompts.prompt import Prompt, as_prompt, rows
from msformer_fast.prompts.rule import PROMPT_RULE, prompted
from msformer_fast.runs import Run, guide_image, load_run, run_path, save_run
from msformer_fast.self_guiding import Callback, Iteration
from msformer_fast.settings import check_prompt, check_values, choose_device


@dataclass(frozen=True)
class Segmentation:
    """The segmentation of one image, at the image's own size.

    Attributes:
        labels: (H, W) unsigned integer, the cluster of every pixel; of several runs the vote. A margin that was left
            out has a number of its own, above all clusters.
        mask: (H, W) bool, the foreground, chosen without any ground truth.
        foreground: how the mask was chosen: rule, labels, reason, confidence.
        history: one entry an iteration of the first run: losses, label count, seconds.
        stopped: of the first run: ``"min_labels"``, ``"patience"``, ``"max_iterations"`` or ``"callback"``.
        network_size: (h, w), the size that the network saw.
        seconds: of the whole call.
        settings: every setting of the run, ready for JSON.
        agreement: (H, W) float64, share of the runs that voted for the pixel's label; ``None`` of one run.
        runs: what each run of the loop left, at the network's size.
        margin: uniform margin that was left out: the network never saw it, the mask is empty there; or ``None``.
        notes: sentences about what could not be read of a DICOM file's header and was left out, or a window that was
            taken unasked; seldom any.
        prompt: points and boxes that were given, in pixels of the image; or ``None``.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    mask: NDArray[np.bool_]
    foreground: Foreground
    history: tuple[Iteration, ...]
    stopped: str
    network_size: tuple[int, int]
    seconds: float
    settings: dict[str, Any]
    agreement: NDArray[np.float64] | None = None
    runs: tuple[Run, ...] = ()
    margin: Margin | None = None
    notes: tuple[str, ...] = ()
    prompt: Prompt | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the maps, ready for JSON."""
        return {
            "stopped": self.stopped,
            "iterations": len(self.history),
            "label_count": int(np.unique(self.labels).size),
            "foreground": {
                "rule": self.foreground.rule,
                "labels": [int(label) for label in self.foreground.labels],
                "reason": self.foreground.reason,
                "pixels": int(self.mask.sum()),
                "confidence": self.foreground.confidence,
                "doubtful": self.foreground.doubtful,
                "terms": dict(self.foreground.terms),
                "candidates": self.foreground.candidates,
                "agreement": self.foreground.agreement,
                "likeness": self.foreground.likeness,
            },
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"prompt": self.prompt.as_dict()} if self.prompt else {}),
            "image_size": list(self.labels.shape),
            "margin": None if self.margin is None else asdict(self.margin),
            "network_size": list(self.network_size),
            "seconds": self.seconds,
            "settings": self.settings,
            "history": [asdict(iteration) for iteration in self.history],
            "runs": [
                {"iterations": len(run.history), "stopped": run.stopped, "label_count": run.history[-1].label_count}
                for run in self.runs
            ],
        }


def segment(
    image: NDArray[Any] | Tensor | str | os.PathLike[str],
    *,
    frame: int | None = None,
    axis: int = 2,
    window: tuple[float, float] | None = None,
    rule: str = "auto",
    modality: str | None = None,
    points: Sequence[Any] | NDArray[Any] | None = None,
    not_points: Sequence[Any] | NDArray[Any] | None = None,
    boxes: Sequence[Any] | NDArray[Any] | None = None,
    neighbour: Neighbour | None = None,
    size: int | None = PRESETS[DEFAULT].size,
    seed: int = 0,
    seeds: int = 1,
    max_iterations: int = PRESETS[DEFAULT].max_iterations,
    min_labels: int = 3,
    patience: int | None = PRESETS[DEFAULT].patience,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weights: LossWeights | tuple[float, float, float] | None = None,
    channels: int = 100,
    clusters: int = 100,
    depth: int | tuple[int, int] = 2,
    patch: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    precision: str | None = PRESETS[DEFAULT].precision,
    memory: str = "fast",
    cross_scale: str = "none",
    backend: str | None = None,
    capture: str = "auto",
    callback: Callback | None = None,
    runs: str | os.PathLike[str] | None = None,
) -> Segmentation:
    """Segment one image without labels: draw a network, let it guide itself, choose the foreground.

    The same image, settings, machine and thread count give the same result. PyTorch's generators are left as
    they were. A uniform margin, as a scanned page has it, is left out (:func:`msformer_fast.margin.find_margin`).

    Args:
        image: path of a file that the command line reads: PNG, JPEG, TIFF, BMP, DICOM or NIfTI; a NumPy array (H, W) or
            (H, W, C), ``uint8``, ``uint16`` or float in [0, 1]; or a tensor (H, W), (C, H, W) or (1, C, H, W),
            likewise. At least 33 pixels high and wide.
        frame: which frame of a DICOM file, or slice of a NIfTI volume, from 0 on; ``None`` for the only one. For all
            of them, written as one volume, there is :func:`msformer_fast.segment_cohort`.
        axis: voxel axis along which a NIfTI volume is sliced: 0, 1 or 2.
        window: centre and width of the grey levels of a DICOM or NIfTI file, in its units, in place of the file's own.
        rule: how the foreground is chosen, a name in :data:`msformer_fast.foreground.RULES`; with points or boxes
            ``"auto"`` is ``"prompt"``, and no other is accepted. For lungs, CT in Hounsfield units is shown from -1000
            to 400 unless a window is given.
        modality: ``"ct"`` or ``"xray"``, where it is known of an image in memory; a DICOM or NIfTI file tells it
            itself, and of all others their looks do.
        points: (x, y) of a pixel of the object, or several, in pixels of the whole image from its upper left corner, x
            to the right. One point means the part that holds it, and what looks the same elsewhere (the other one of
            two lungs); several mean the parts that hold them.
        not_points: likewise, of pixels that are not of the object.
        boxes: (x0, y0, x1, y1) of a box that holds the object, or several, each with an object of its own. With points
            in a box the object is theirs, and ends within about the box.
        neighbour: pixels and mask of the slice of a volume next to this one, in place of points and boxes: the mask is
            what of its object goes on here, empty where nothing does; ``not_points`` may be given with it. Volumes are
            gone through so by :func:`msformer_fast.segment_cohort`.
        size: longest side, in pixels, of what the network sees; ``None`` for the image's own size. This default and
            those of ``max_iterations``, ``patience`` and ``precision`` are the preset ``"quick"``; the paper's settings
            are ``**PRESETS["paper"]._asdict()`` (:mod:`msformer_fast.presets`).
        seed: of the network's parameters.
        seeds: runs, each from the next seed: the candidates of all are weighed together, and ``labels`` are their
            vote. Each costs as much as the first.
        max_iterations: steps at most, 1 or more.
        min_labels: stop after the step of the first iteration with this many distinct labels or fewer.
        patience: stop when the number of distinct labels has not fallen for this many iterations; ``None`` to go on.
        learning_rate, momentum: of SGD.
        weights: of the clustering, consistency and stability loss; ``None`` for the authors' (1, 1.5, 1.3).
        channels, clusters, depth, patch: of the network; see :class:`msformer_fast.MSFormer`.
        device: ``None`` for a CUDA device if there is one, else the CPU.
        dtype: ``torch.float32`` or ``torch.float64``.
        precision: of float32 products, while the network runs: ``"highest"``, or ``"high"`` for tf32 on a GPU and two
            parts of bfloat16 on a CPU's matrix unit; ``None`` for what
            :func:`torch.set_float32_matmul_precision` was told.
        memory: ``"fast"``, or ``"lean"`` for about half the memory and some more time; see
            :class:`msformer_fast.MSFormer`.
        cross_scale: ``"none"`` for the paper's network, or ``"window"``; see :class:`msformer_fast.MSFormer`.
        backend: of every op; see :mod:`msformer_fast.ops`.
        capture: ``"auto"``, ``"always"`` or ``"never"``: replay the loop as CUDA graphs; see
            :func:`msformer_fast.self_guide`.
        callback: called with each :class:`Iteration` after its step; returning ``False`` stops the loop.
        runs: a folder in which the maps of every run are kept (about 2 MB at 257 pixels) and found again for the same
            image and settings, to try another rule without the network; ``None`` to keep nothing.

    Raises:
        InputError: an image or a setting that cannot be used; a file of several frames, and none named; a point or a
            box outside of the image, or another rule with it; a neighbour of another shape, or beside points or boxes.
        BackendError: a backend, or ``capture="always"``, that cannot run; the message says why.
        DivergenceError: a loss became NaN or infinite; names the iteration.

    Source: MS-Former, algorithm 1; defaults are the authors', but for the preset's.
    """
    started = time.perf_counter()
    weights = LossWeights(*weights) if weights is not None else LossWeights()
    check_modality(modality)
    prompt = _prompt(points, not_points, boxes, neighbour)
    check_prompt(rule, prompt)
    check_values(
        rule, seeds, max_iterations, min_labels, patience, learning_rate, momentum, weights, dtype, capture, precision
    )
    pixels, notes, known = _pixels(image, frame, axis, window, rule in LUNG_RULES)
    modality = known if modality is None else modality
    if prompt is not None:
        prompt.check(pixels.shape)
    target = choose_device(device)
    network_size = fit_size(pixels.shape[0], pixels.shape[1], size)
    margin = None
    if neighbour is None:
        margin, network_size = _without_margin(pixels, size, patch, network_size, prompt)
    else:
        check_neighbour(neighbour, pixels.shape)
    inner = prompt if prompt is None or margin is None else prompt.within(margin, pixels.shape)
    if margin is not None:
        pixels = np.ascontiguousarray(pixels[margin.inside(pixels.shape)])
    seen = resize_image(pixels, network_size)
    folder = None if runs is None else check_output_folder(runs)
    settings = {
        "rule": rule,
        "size": size,
        "seed": seed,
        "seeds": seeds,
        "max_iterations": max_iterations,
        "min_labels": min_labels,
        "patience": patience,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weights": weights._asdict(),
        "channels": channels,
        "clusters": clusters,
        "depth": depth,
        "patch": patch,
        "device": str(target),
        "dtype": str(dtype).removeprefix("torch."),
        "memory": memory,
        "cross_scale": cross_scale,
        "backend": backend,
        "capture": capture,
        "precision": precision,
    }
    settings["preset"] = preset_name(settings)

    options = target, dtype, callback
    made = [_run(seen, settings, each, folder, *options) for each in range(seed, seed + seeds)]
    pointed = None if inner is None else inner.at(pixels.shape, seen.shape)
    if neighbour is None:
        chosen = choose_foreground(made, seen, rule, pointed, modality=modality)
    else:
        maps = [Maps(run.labels, run.scores) for run in made]
        chosen = carried(maps, seen, neighbour, () if pointed is None else pointed.not_points, modality)
    labels, agreement = carry_up_labels(made[0].labels, pixels.shape[:2], made[0].scores, made[0].kept), None
    if seeds > 1:
        # The vote has numbers of its own.
        voted, agreement = consensus_labels([run.labels for run in made])
        chosen = replace(chosen, labels=clusters_in(chosen.mask, voted))
        voted = voted.astype(np.result_type(labels.dtype, np.min_scalar_type(int(voted.max()))))
        labels = carry_up_labels(voted, pixels.shape[:2])
        agreement = resize_nearest(agreement, pixels.shape[:2])
    mask = carry_up(chosen.mask, pixels)
    if margin is not None:
        chosen = replace(chosen, reason=f"{chosen.reason} Left out: {margin}.")
        outside = max(clusters, int(labels.max()) + 1)
        labels = margin.pad(labels.astype(np.result_type(labels.dtype, np.min_scalar_type(outside))), outside)
        mask = margin.pad(mask, False)
        agreement = None if agreement is None else margin.pad(agreement, 1.0)
    return Segmentation(
        labels=labels,
        mask=mask,
        foreground=chosen,
        history=made[0].history,
        stopped=made[0].stopped,
        network_size=network_size,
        seconds=time.perf_counter() - started,
        settings=settings,
        agreement=agreement,
        runs=tuple(made),
        margin=margin,
        notes=notes,
        prompt=prompt,
    )


def _prompt(points: Any, not_points: Any, boxes: Any, neighbour: Neighbour | None) -> Prompt | None:
    """The prompt of one image: what was given, or the not-points beside a neighbour."""
    if neighbour is None:
        return as_prompt(points, not_points, boxes)
    if as_prompt(points, None, boxes) is not None:
        raise InputError("neighbour: given with points or boxes; accepted is one of them, with not_points or without")
    return Prompt(not_points=tuple((x, y) for x, y in rows("not_points", not_points, 2)))


def choose_foreground(
    runs: Sequence[Run],
    seen: NDArray[np.float32],
    rule: str,
    prompt: Prompt | None = None,
    modality: str | None = None,
) -> Foreground:
    """The foreground of runs on ``seen`` (h, w, C), by a rule or by a prompt in its pixels."""
    maps = [Maps(run.labels, run.scores) for run in runs]
    if prompt is not None:
        return prompted(maps, seen, prompt, modality)
    return foreground_of_runs(maps, seen, rule, modality=modality)


def _pixels(
    image: NDArray[Any] | Tensor | str | os.PathLike[str],
    frame: int | None,
    axis: int,
    window: tuple[float, float] | None,
    lungs: bool,
) -> tuple[NDArray[np.float32], tuple[str, ...], str | None]:
    """The image (H, W, C) in [0, 1], decoded once where it is a file, the file's notes and its modality."""
    if not isinstance(image, (str, os.PathLike)):
        if frame is not None:
            raise InputError(f"frame: got {frame!r} for an image in memory; accepted is None, frames are of files")
        return as_image(image), (), None
    if isinstance(frame, bool) or not isinstance(frame, (int, np.integer, type(None))):
        raise InputError(f"frame: got {frame!r}; accepted is an integer or None")
    index = int(frame or 0)
    file = open_image(image, axis=axis, window=window, lungs=lungs)
    name = show(image)
    if frame is None and file.frames > 1:
        raise InputError(
            f"{name}: has {file.frames} frames and frame is None; accepted are 0 to {file.frames - 1}, or "
            "segment_cohort for all of them"
        )
    pixels = file.read(index)
    named = f"{name}, frame {index}" if file.is_volume else name
    return as_image(pixels, name=named), file.notes, file.modality


def _without_margin(
    pixels: NDArray[np.float32], size: int | None, patch: int, whole: tuple[int, int], prompt: Prompt | None = None
) -> tuple[Margin | None, tuple[int, int]]:
    """The margin, if what is inside can be segmented and no prompt is in it, and the network's size for that: of no
    more pixels than the whole image would have, whose memory was planned."""
    margin = find_margin(pixels)
    if margin is None or (prompt is not None and prompt.within(margin, pixels.shape) is None):
        return None, whole
    height, width = pixels[margin.inside(pixels.shape)].shape[:2]
    try:
        fitted = fit_size(height, width, size)
        if math.prod(fitted) > math.prod(whole):
            fitted = fit_size(height, width, int(max(fitted) * math.sqrt(math.prod(whole) / math.prod(fitted))))
    except InputError:  # too narrow
        return None, whole
    return (None, whole) if min(fitted) <= min(patch, min(whole) - 1) else (margin, fitted)


def _run(
    seen: NDArray[np.float32],
    settings: dict[str, Any],
    seed: int,
    folder: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    callback: Callback | None,
) -> Run:
    """From the folder of runs if it is there, else made, and kept there unless a callback cut it short."""
    path = None if folder is None else run_path(folder, seen, settings, seed)
    if path is not None and path.exists():
        return load_run(path)
    run = guide_image(seen, settings, seed, device, dtype, callback)
    if path is not None and run.stopped != "callback":
        save_run(path, run)
    return run


def check_settings(**settings: Any) -> None:
    """Raise what :func:`segment` would for these keyword arguments, whatever the image: before the first of many.

    One step is done on a few pixels.

    Raises:
        InputError, BackendError, DivergenceError: see :func:`segment`.
    """
    fit_size(2**31, 2**31, settings.get("size", PRESETS[DEFAULT].size))
    once: dict[str, Any] = {name: min(1, settings[name]) for name in ("seeds", "max_iterations") if name in settings}
    given: dict[str, Any] = {"max_iterations": 1, **settings, **once, "size": None, "runs": None, "callback": None}
    # Where an image is pointed at depends on the image.
    if given.get("rule") == PROMPT_RULE:
        given["rule"] = "auto"
    for name in ("points", "not_points", "boxes"):
        given.pop(name, None)
    noise = np.random.default_rng(0).random((MIN_SIDE, MIN_SIDE, 3), dtype=np.float32)
    segment(noise, **given)
