"""What ``torch.compile`` makes of the network and of every module: graph breaks, recompilations, values, gradients.

``python -m tests.harness.compile_table [--compiler inductor] [--backend NAME] [MODULE ...]`` prints a markdown table of
three sizes each, forward and backward in float64. Without a GPU the kernels run in the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from torch._dynamo.testing import CompileCounterWithBackend

import msformer_fast as mf
from msformer_fast.nn import published as drop_ins
from tests import published_networks, swin_blocks

BACKENDS = ("reference", "torch", "triton")

#: Height and width of the maps: not square, none a multiple of another, odd and even.
SIZES = ((11, 14), (17, 12), (21, 19))

#: Three ways to ask for shapes: each size anew; the second size makes them symbols; symbols from the start.
DYNAMIC = {"static": False, "automatic": None, "dynamic": True}


class Step(nn.Module):
    """The network and its three losses."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.backend = options["backend"]
        self.net = mf.MSFormer(3, 4, 6, depth=1, patch=8, seed=0, **options)

    def forward(self, image: Tensor) -> Tensor:
        return mf.self_guiding_losses(self.net(image), backend=self.backend).total


@dataclass(frozen=True)
class Case:
    """One module.

    Attributes:
        build: makes it for a backend.
        draw: its inputs for a height and width.
        sizes: heights and widths to draw at.
    """

    build: Callable[[str | None], nn.Module]
    draw: Callable[[int, int], tuple[Any, ...]]
    sizes: tuple[tuple[int, int], ...] = SIZES


def _map(channels: int = 4) -> Callable[[int, int], tuple[Any, ...]]:
    return lambda height, width: (torch.randn(1, height, width, channels),)


def _planes(channels: int) -> Callable[[int, int], tuple[Any, ...]]:
    return lambda height, width: (torch.randn(1, channels, height, width),)


def _tokens(height: int, width: int) -> tuple[Any, ...]:
    return torch.randn(1, height * width, 4), height, width


def _two_scales(height: int, width: int) -> tuple[Any, ...]:
    coarse = (height + 1) // 2, (width + 1) // 2
    return torch.randn(1, height, width, 4), torch.randn(1, *coarse, 4)


def _coarse_first(height: int, width: int) -> tuple[Any, ...]:
    return _two_scales(height, width)[::-1]


def _pairs(height: int, width: int) -> tuple[Any, ...]:
    return torch.randn(1, height, 5), torch.randn(1, height, 5)


def _awake(module: nn.Module) -> nn.Module:
    """With every parameter drawn: a projection that starts at zero hides what is behind it."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def _swin(library: str) -> Case:
    """A block of shifted windows; the library's own masks are for one size, of which these three share the windows."""
    sizes = ((10, 7), (9, 6), (11, 8))

    def build(backend: str | None) -> nn.Module:
        return swin_blocks.DROP_INS[library].of(
            swin_blocks.block_of(library, sizes[0], (4, 4), (2, 2))[0], backend=backend
        )

    def draw(height: int, width: int) -> tuple[Any, ...]:
        extra = swin_blocks.block_of(library, (height, width), (4, 4), (2, 2))[1]
        return torch.randn(2, height, width, 12), *extra

    return Case(build, draw, sizes)


CASES = {
    "MSFormer, memory fast": Case(lambda b: Step(memory="fast", backend=b), _planes(3)),
    "MSFormer, memory lean": Case(lambda b: Step(memory="lean", backend=b), _planes(3)),
    "MSFormer, cross_scale window": Case(lambda b: _awake(Step(cross_scale="window", backend=b)), _planes(3)),
    "ClusteringLoss": Case(lambda b: mf.nn.ClusteringLoss(backend=b), _planes(5)),
    "CrossScaleAttention": Case(
        lambda b: _awake(mf.nn.CrossScaleAttention(4, window=4, num_heads=2, shift=2, halo=1, backend=b)), _two_scales
    ),
    "EfficientAttention": Case(lambda b: mf.nn.EfficientAttention(4, num_heads=2, backend=b), _map()),
    "EfficientTransformerBlock": Case(lambda b: mf.nn.EfficientTransformerBlock(4, backend=b), _map()),
    "MixFFN": Case(lambda b: mf.nn.MixFFN(4, backend=b), _map()),
    "MonaiSwinBlock": _swin("monai"),
    "OverlapEmbedding": Case(lambda b: mf.nn.OverlapEmbedding(3, 4, stride=2), _planes(3)),
    "PatchEmbedding": Case(lambda b: mf.nn.PatchEmbedding(5, 6, patch=8, backend=b), _planes(5)),
    "PublishedEfficientAttention": Case(
        lambda b: drop_ins.PublishedEfficientAttention(
            published_networks.EfficientAttention(4), drop_ins.AttentionForm(), backend=b
        ),
        _planes(4),
    ),
    "PublishedMixFFN": Case(
        lambda b: drop_ins.PublishedMixFFN(
            published_networks.MixFFN_skip(4, 9), drop_ins.FeedForwardForm(skip=True, norm="norm1"), backend=b
        ),
        _tokens,
    ),
    "PublishedTransformerBlock": Case(
        lambda b: drop_ins.PublishedTransformerBlock(
            published_networks.EfficientTransformerBlock(4),
            drop_ins.BlockForm(
                drop_ins.AttentionForm(context="last"), drop_ins.FeedForwardForm(skip=True, norm="norm1"), "last"
            ),
            backend=b,
        ),
        _tokens,
    ),
    "ScoreMap": Case(lambda b: mf.nn.ScoreMap(4, 6, backend=b), _coarse_first),
    "StabilityLoss": Case(lambda b: mf.nn.StabilityLoss(backend=b), _pairs),
    "TimmSwinBlock": _swin("timm"),
    "TwoWayCrossScaleAttention": Case(
        lambda b: _awake(mf.nn.TwoWayCrossScaleAttention(4, window=4, num_heads=2, shift=2, backend=b)), _two_scales
    ),
}


@dataclass(frozen=True)
class Found:
    """What came of a module, compiled whole (``fullgraph=True``).

    Attributes:
        frames: compilations for the three sizes.
        value, gradient: the largest error against eager of any output and any gradient, relative to its largest entry.
    """

    frames: int
    value: float
    gradient: float


def doubles(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Floating tensors in float64, for a gradient; masks of windows and numbers as they are."""
    return tuple(
        v.detach().double().requires_grad_(v.ndim != 3 or v.shape[1] != v.shape[2]) if isinstance(v, Tensor) else v
        for v in values
    )


def outputs_and_gradients(
    module: Callable[..., Any], owner: nn.Module, inputs: tuple[Any, ...]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Outputs of a call, and gradients of their weighted sum for the inputs and the parameters of ``owner``."""
    made = module(*inputs)
    outputs = [made] if isinstance(made, Tensor) else list(made)
    wanted = [v for v in (*inputs, *owner.parameters()) if isinstance(v, Tensor) and v.requires_grad]
    total = sum(
        (o * torch.linspace(-1, 2, o.numel(), dtype=o.dtype, device=o.device).view(o.shape)).sum()
        for o in outputs
        if o.requires_grad
    )
    return [o.detach() for o in outputs], list(torch.autograd.grad(total, wanted, allow_unused=True))


def error(ours: list[Tensor | None], theirs: list[Tensor | None]) -> float:
    """The largest difference of any tensor, relative to its largest entry, or to a thousandth of the largest of all:
    a gradient that is zero in exact arithmetic is rounding in both."""
    worst, least = 0.0, 1e-3 * max((float(t.abs().max()) for t in theirs if t is not None and t.numel()), default=0.0)
    for mine, truth in zip(ours, theirs, strict=True):
        if mine is None or truth is None:
            worst = worst if mine is truth else float("inf")
            continue
        mine, truth = mine.double(), truth.double()
        if truth.numel():
            worst = max(worst, float((mine - truth).abs().max()) / max(float(truth.abs().max()), least, 1e-30))
    return worst


def compiled(case: Case, backend: str | None, compiler: str = "aot_eager", dynamic: bool | None = None) -> Found:
    """Compile a module whole and run it forward and backward at its sizes, against eager."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    module = case.build(backend).double()
    call = torch.compile(module, fullgraph=True, backend=counter, dynamic=dynamic)
    value = gradient = 0.0
    for size in case.sizes:
        inputs = doubles(case.draw(*size))
        outputs, gradients = outputs_and_gradients(module, module, inputs)
        ours, our_gradients = outputs_and_gradients(call, module, inputs)
        value, gradient = max(value, error(ours, outputs)), max(gradient, error(our_gradients, gradients))
    return Found(counter.frame_count, value, gradient)


def graph_breaks(case: Case, backend: str | None) -> int:
    """Of a forward call, as ``torch._dynamo.explain`` counts them."""
    torch._dynamo.reset()
    found = torch._dynamo.explain(case.build(backend).double())(*doubles(case.draw(*case.sizes[0])))
    return found.graph_break_count


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Without a GPU, kernels with bounds checked and poisoned lanes."""
    if torch.cuda.is_available():
        yield
        return
    from tests.harness.interpreter import fixed

    with fixed(poison=True):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="names of modules, default all")
    parser.add_argument("--compiler", default="aot_eager")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    ways = " | ".join(f"{way}: compilations | values, gradients" for way in DYNAMIC)
    print(f"| module | backend | graph breaks | {ways} |")
    print("| --- | --- | --- |" + " --- | --- |" * len(DYNAMIC))
    with strict():
        for name in given.modules or CASES:
            for backend in given.backend or BACKENDS:
                cells = [str(graph_breaks(CASES[name], backend))]
                for dynamic in DYNAMIC.values():
                    try:
                        found = compiled(CASES[name], backend, given.compiler, dynamic)
                        cells += [str(found.frames), f"{found.value:.0e}, {found.gradient:.0e}"]
                    except Exception as failure:
                        cells += ["-", f"{type(failure).__name__}: {str(failure).splitlines()[0][:120]}"]
                print(f"| {name} | {backend} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
