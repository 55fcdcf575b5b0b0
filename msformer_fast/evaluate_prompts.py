"""The prompted protocol: one point or a box is taken from the truth, and what each method makes of it is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError
from msformer_fast.foreground import Foreground
from msformer_fast.foreground.evidence import Mask, darkness_channel
from msformer_fast.images import resize_image
from msformer_fast.metrics import MaskScores, score_blind
from msformer_fast.outlines import carry_up
from msformer_fast.prompts.prompt import Prompt
from msformer_fast.runs import Run
from msformer_fast.segmentation import Segmentation, choose_foreground
from msformer_fast.simple_prompted import (
    BOX_METHODS,
    POINT_METHODS,
    missing_for_prompts,
    simple_box,
    simple_point,
)

#: What is taken from the truth: its most inner pixel; that of each of its parts, or of the halves of a single one; its
#: bounding box with every side moved by up to 5 %.
PROMPTS = ("point", "clicks", "box")
_JITTER = 0.05
# Parts of the truth that are clicked: so many at most, and of that share of the largest at least.
_MOST_CLICKS, _LEAST_CLICKED = 4, 0.05
#: The prompt rule on the image's values alone, without clusters.
WITHOUT_CLUSTERS = "without clusters"


def prompt_names(prompts: Sequence[str]) -> list[str]:
    """The protocols of these prompts and, behind each, the methods with the same prompt that can run here.

    Raises InputError for a prompt that is none of :data:`PROMPTS`.
    """
    names = []
    for prompt in prompts:
        if prompt not in PROMPTS:
            raise InputError(f"prompts: got {prompt!r}; accepted are {', '.join(PROMPTS)}")
        methods = {"point": POINT_METHODS, "box": BOX_METHODS}.get(prompt, ())
        names += [prompt, f"{prompt} {WITHOUT_CLUSTERS}"]
        names += [f"{prompt} {method}" for method in methods if missing_for_prompts(method) is None]
    return names


def truth_prompt(truth: Mask, prompt: str, name: str) -> Prompt:
    """The points or box of a truth (H, W). ``name`` of the image decides how a box is jittered, as a seed."""
    if prompt == "point":
        return Prompt(points=(_most_inner(truth),))
    if prompt == "clicks":
        return Prompt(points=tuple(map(_most_inner, _clicked(truth))))
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    x0, y0, x1, y1 = float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    moves = np.random.default_rng(seed).uniform(-_JITTER, _JITTER, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
    return Prompt(boxes=(tuple(float(each) for each in np.array([x0, y0, x1, y1]) + moves),))  # type: ignore[arg-type]


def _most_inner(mask: Mask) -> tuple[float, float]:
    """(x, y) of the pixel of a mask (H, W) that is furthest from its outline."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    return float(column), float(row)


def _clicked(truth: Mask) -> list[Mask]:
    """The large parts of a truth (H, W), or the left and the right half of a single one."""
    from scipy import ndimage

    parts, _ = ndimage.label(truth)
    sizes = np.bincount(parts.ravel())[1:]
    large = [number for number in np.argsort(-sizes)[:_MOST_CLICKS] if sizes[number] >= _LEAST_CLICKED * sizes.max()]
    if len(large) > 1:
        return [parts == number + 1 for number in large]
    columns = np.arange(truth.shape[1])
    left = columns < np.median(np.nonzero(truth)[1])
    halves = [truth & left, truth & ~left]
    return [half for half in halves if half.any()]


def score_prompts(
    result: Segmentation, pixels: NDArray[np.float32], truth: Mask, prompts: Sequence[str], name: str
) -> tuple[dict[str, MaskScores], dict[str, Any]]:
    """The scores of every name in :func:`prompt_names` on one image (H, W, C), from the runs that were made already;
    and how sure the mask of each prompt is, by the names of columns."""
    scored: dict[str, MaskScores] = {}
    sure: dict[str, Any] = {}
    for prompt in prompts:
        given = truth_prompt(truth, prompt, name)
        for each in prompt_names([prompt]):
            if each in (prompt, f"{prompt} {WITHOUT_CLUSTERS}"):
                mask, found = prompted_mask(result, pixels, given, clusters=each == prompt)
                if each == prompt:
                    sure |= {f"{prompt}_{name}": value for name, value in _sureness(found).items()}
            else:
                mask = _simple(pixels, given, each.removeprefix(f"{prompt} "))
            scored[each] = score_blind(mask, truth)
    return scored, sure


def _sureness(found: Foreground) -> dict[str, Any]:
    return {
        "confidence": round(found.confidence, 4),
        "doubtful": found.doubtful,
        "agreement": round(found.agreement, 4),
        "rule": found.voted_with,
    }


def prompted_mask(
    result: Segmentation, pixels: NDArray[np.float32], prompt: Prompt, *, clusters: bool = True
) -> tuple[Mask, Foreground]:
    """The mask (H, W) that the prompt would have had in ``result``'s place, without the network running again; and how
    it came about."""
    margin, inside, inner = result.margin, pixels, prompt
    if margin is not None:
        moved = prompt.within(margin, pixels.shape)
        if moved is None:
            raise InputError("prompt: lies in the margin that was left out; segment the image with it instead")
        inside, inner = pixels[margin.inside(pixels.shape)], moved
    seen = resize_image(inside, result.network_size)
    runs: Sequence[Run] = result.runs
    if not clusters:
        # Grey levels in place of clusters: whatever the network adds is missing.
        levels = np.rint(darkness_channel(seen.astype(np.float64)) * 255).astype(np.uint8)
        runs = [replace(run, labels=levels, scores=None) for run in runs[:1]]  # type: ignore[arg-type]
    chosen = choose_foreground(runs, seen, "auto", inner.at(inside.shape, seen.shape))
    mask = carry_up(chosen.mask, inside)
    return mask if margin is None else margin.pad(mask, False), chosen


def _simple(pixels: NDArray[Any], prompt: Prompt, method: str) -> Mask:
    if prompt.points:
        return simple_point(pixels, prompt.points[0], method)
    return simple_box(pixels, prompt.boxes[0], method)
