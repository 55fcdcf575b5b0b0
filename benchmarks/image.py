"""Speed of a whole image, ``self_guide`` for a fixed number of iterations: ``pytest benchmarks/image.py
--benchmark-only``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from msformer_fast import phantom
from msformer_fast.benchmarks.case import Case, Floor, Kernels, Subject, Wanted, refuse_device
from msformer_fast.benchmarks.step import model_of
from msformer_fast.self_guiding import Guided, self_guide

#: Backend, memory and capture of each provider.
PROVIDERS = {
    "reference": ("reference", "fast", "never"),
    "torch": ("torch", "fast", "never"),
    "torch-lean": ("torch", "lean", "never"),
    "native": ("native", "fast", "never"),
    "triton": ("triton", "fast", "never"),
    "triton-captured": ("triton", "fast", "always"),
    "triton-lean-captured": ("triton", "lean", "always"),
}

#: Iterations whose losses are held to float64: later ones amplify rounding, in the authors' code too.
COMPARED = 3


class ImageBench:
    """A drawn lesion, a fresh network, so many iterations of the loop."""

    name = "image"
    doc = "the self-guided loop on one image, a fixed number of iterations, with the final label map"
    parts = ("image",)
    plain = "reference"
    paper = 100
    ahead = False  # what a user waits for

    def cases(self, device: str, dtypes: Iterable[str], wanted: Wanted) -> list[Case]:
        if "float32" not in dtypes:
            return []
        sizes = {"depth": 2, "patch": 32, "iterations": 5 if device == "cpu" else 30}
        if wanted.sides or wanted.channels:
            varied = wanted.of(device, self.paper)
        elif wanted.quick:
            varied = [(129, self.paper)]
        else:
            varied = [(side, self.paper) for side in ((129, 257) if device == "cpu" else (129, 257, 513))]
        return [
            Case.of(self.name, {**sizes, "side": side, "channels": channels}, "float32", device, wanted.seed)
            for side, channels in varied
        ]

    def providers(self) -> list[str]:
        return list(PROVIDERS)

    def why_not(self, case: Case, provider: str) -> str | None:
        return refuse_device(case, provider)

    def prepare(self, case: Case, provider: str) -> Subject:
        backend, memory, capture = PROVIDERS[provider]
        image = image_of(case)

        def run(iterations: int, dtype: torch.dtype = torch.float32) -> Guided:
            model = model_of(case, backend, memory).to(dtype)
            return self_guide(
                model,
                image.to(dtype),
                max_iterations=iterations,
                min_labels=0,
                capture=capture if iterations > 4 else "never",
            )

        return Subject(
            parts={"image": lambda: run(case["iterations"])},
            before={"image": lambda: None},
            results=lambda: _losses(run(max(COMPARED, min(case["iterations"], 6)))),
        )

    def truth(self, case: Case) -> dict[str, Tensor]:
        model = model_of(case, "torch", "lean").double()
        image = image_of(case).double()
        return _losses(self_guide(model, image, max_iterations=COMPARED, min_labels=0, capture="never"))

    def floor(self, case: Case, part: str) -> Floor | None:
        from msformer_fast.benchmarks.step import BENCH

        step = BENCH.floor(case, "step")
        return step and Floor(case["iterations"] * step.bytes, case["iterations"] * step.flops)

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels | None:
        return None


def image_of(case: Case) -> Tensor:
    """A drawn lesion with hairs and vignette, (1, 3, side, side) in [0, 1]."""
    drawn, _ = phantom.lesion((case["side"],) * 2, seed=case.seed)
    return torch.from_numpy(drawn).float().permute(2, 0, 1)[None].to(case.device)


def _losses(guided: Guided) -> dict[str, Tensor]:
    return {
        f"losses of iteration {i.index}": torch.tensor([i.total, i.clustering, i.consistency, i.stability]).double()
        for i in guided.history[:COMPARED]
    }


BENCH = ImageBench()


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
