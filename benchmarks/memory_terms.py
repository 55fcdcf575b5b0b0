"""The memory of a step by its sizes, fitted to counts: what ``msformer_fast.cohort.memory`` predicts with.

    python -m msformer_fast.benchmarks.memory_terms [--write]     # twenty minutes

Counts are those of :func:`msformer_fast.benchmarks.largest.peak_of`, on tensors without data. Of every mode two linear
functions of the features that ``cohort.memory`` names lie above all counts, as low as they can: a linear programme,
solved again with each count given to the function that was the larger one, until nothing improves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from msformer_fast.benchmarks.largest import peak_of
from msformer_fast.cohort import memory
from msformer_fast.files import write_text

FILE = Path(memory.__file__).parent / "memory_terms.json"
#: Predictions lie so far above the counts that they are fitted to.
ABOVE = 1.01
DRAWS, WINDOW_DRAWS, ROUNDS = 48, 10, 6

Settings = dict[str, Any]
Array = NDArray[np.float64]


def settings_of(mode: str) -> Settings:
    backend, kept = mode.split()
    device = "cuda" if backend in ("triton", "expression") else "cpu"
    return {"backend": "torch" if backend == "expression" else backend, "memory": kept, "device": device}


@contextlib.contextmanager
def no_strips() -> Iterator[None]:
    """The "torch" backend takes tensors on the CPU for those of a card."""

    def never(tensor: Tensor) -> bool:  # no mock object: it would keep the tensors that it is called with
        return False

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("msformer_fast.ops.") and hasattr(module, "runs_in_strips"):
                stack.enter_context(mock.patch.object(module, "runs_in_strips", never))
        yield


def counted(mode: str, side: int, sizes: Settings) -> int:
    """Exact peak of a step, in bytes."""
    settings = settings_of(mode)
    with no_strips() if mode.startswith("expression") else contextlib.nullcontext():
        count = peak_of.__wrapped__  # what is not cached
        return int(count(settings["backend"], settings["memory"], side, device=settings["device"], **sizes).total)


def drawn(count: int, seed: str) -> list[tuple[int, Settings]]:
    """Sides of 65 to 1025 pixels, with widths and depths."""
    draw = random.Random(seed)
    return [
        (
            round(math.exp(draw.uniform(math.log(65), math.log(1025)))),
            {"channels": draw.randint(8, 130), "clusters": draw.randint(8, 130), "depth": draw.randint(1, 3)},
        )
        for _ in range(count)
    ]


def corners() -> list[tuple[int, Settings]]:
    """The narrowest and the widest, and two beyond what is drawn."""
    found = [
        (side, {"channels": c, "clusters": k, "depth": depth})
        for side, depth in ((129, 1), (1025, 1), (600, 3))
        for c in (8, 130)
        for k in (8, 130)
    ]
    return [*found, (2049, {"channels": 100, "clusters": 100, "depth": 2}), (300, {"channels": 256, "clusters": 200})]


def above(features: Array, counts: Array, terms: Array) -> Array:
    """Linear functions, the largest of which is never below a count, and as little above as it can be.

    Args:
        features: (samples, features). counts: (samples,).
        terms: (functions, features), to begin with.
    """
    least = math.inf
    functions, width = terms.shape
    relative = features / counts[:, None]
    scale = np.maximum(relative.mean(0), 1e-300)  # of each feature, for the solver
    rows, samples = relative / scale, len(relative)
    for _ in range(ROUNDS):
        chosen = (features @ terms.T).argmax(1)
        # Unknowns: terms of every function, then the excess of every sample.
        at_least = np.zeros((samples, functions * width + samples))
        at_most = np.zeros((functions * samples, functions * width + samples))
        for sample, function in enumerate(chosen):
            at_least[sample, function * width : (function + 1) * width] = -rows[sample]
        for function in range(functions):
            block = slice(function * samples, (function + 1) * samples)
            at_most[block, function * width : (function + 1) * width] = rows
            at_most[block, functions * width :] = -np.eye(samples)
        cost = np.concatenate([np.full(functions * width, 1e-6), np.ones(samples)])
        limits = np.concatenate([-np.ones(samples), np.ones(functions * samples)])
        solved = linprog(cost, A_ub=np.concatenate([at_least, at_most]), b_ub=limits)
        if not solved.success or solved.fun >= least - 1e-6:
            break
        least, terms = solved.fun, solved.x[: functions * width].reshape(functions, width) / scale
    return terms


def fitted(mode: str) -> list[list[float]]:
    """Terms of the features of one mode."""
    samples = [*drawn(DRAWS, mode), *corners()]
    every = [{**settings_of(mode), **sizes} for _, sizes in samples]
    sides = [side for side, _ in samples]
    features = np.array([memory.features_of(side, side, s) for side, s in zip(sides, every, strict=True)])
    held = [memory.held_bytes(side, side, s) for side, s in zip(sides, every, strict=True)]
    exact = np.array([counted(mode, *sample) for sample in samples], dtype=float)
    return _written(above(features, ABOVE * exact - held, np.array(memory.terms_of(mode))))


def fitted_window(backend: str) -> list[list[float]]:
    """Terms of what windows across scales add to a step of both memories, beside what is predicted without them.

    Of the reference they stay: the shape of a mask there depends on numbers, which tensors without data do not have.
    """
    try:
        return _fitted_window(backend)
    except DynamicOutputShapeException:
        return memory.terms_of(f"{backend} window")


def _fitted_window(backend: str) -> list[list[float]]:
    features, counts = [], []
    for mode in (f"{backend} fast", f"{backend} lean"):
        if mode not in MODES:
            continue
        for side, sizes in drawn(WINDOW_DRAWS, f"window {mode}"):
            settings = {**settings_of(mode), **sizes, "cross_scale": "window"}
            exact = counted(mode, side, {**sizes, "cross_scale": "window"})
            plain = memory.most(mode, memory.features_of(side, side, settings))
            added = ABOVE * exact - memory.held_bytes(side, side, settings) - plain
            if added > 0:
                features.append(memory.window_features_of(side, side, settings))
                counts.append(added)
    return _written(above(np.array(features), np.array(counts), np.array(memory.terms_of(f"{backend} window"))))


def _written(terms: Array) -> list[list[float]]:
    """Four digits, rounded up."""
    digits = 10 ** (3 - np.floor(np.log10(np.maximum(terms, 1e-12))))
    return [
        [float(f"{value:.4g}") for value in row] for row in np.where(terms > 1e-9, np.ceil(terms * digits) / digits, 0)
    ]


MODES = tuple(mode for mode in memory.MODES if not mode.endswith("window"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the file in the package")
    arguments = parser.parse_args()
    found = {}
    for mode in MODES:
        found[mode] = fitted(mode)
        print(mode, *found[mode], sep="\n  ", flush=True)
    for backend in dict.fromkeys(mode.split()[0] for mode in MODES):
        found[f"{backend} window"] = fitted_window(backend)
        print(f"{backend} window", *found[f"{backend} window"], sep="\n  ", flush=True)
    if arguments.write:
        lines = (f"  {json.dumps(mode)}: {json.dumps(terms)}" for mode, terms in found.items())
        write_text(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
