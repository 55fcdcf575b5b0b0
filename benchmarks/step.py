"""Speed of one whole step of the self-guided loop: ``pytest benchmarks/step.py --benchmark-only``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast import MSFormer, self_guiding_losses
from msformer_fast.benchmarks.case import Case, Floor, Kernels, Subject, Wanted, refuse_device
from msformer_fast.benchmarks.ledger import rows_of
from msformer_fast.benchmarks.precision import products
from msformer_fast.kernels.native import library
from msformer_fast.ops.precision import kernel_precision, use_ieee_products
from msformer_fast.parity import NOISE

#: Backend and memory of each provider; those named "ieee" multiply by fused multiply-adds alone, "native-high" as where
#: products of lower precision are asked for, "compiled" is the plain network under ``torch.compile``.
PROVIDERS = {
    "reference": ("reference", "fast"),
    "torch": ("torch", "fast"),
    "torch-lean": ("torch", "lean"),
    "native": ("native", "fast"),
    "native-ieee": ("native", "fast"),
    "native-high": ("native", "fast"),
    "triton": ("triton", "fast"),
    "triton-lean": ("triton", "lean"),
    "triton-ieee": ("triton", "fast"),
    "compiled": ("reference", "fast"),
}


@contextmanager
def _ieee_products() -> Iterator[None]:
    use_ieee_products()
    try:
        yield
    finally:
        use_ieee_products(False)


#: How a provider's products are made, where not as by default.
PRODUCTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "triton-ieee": _ieee_products,
    "native-ieee": _ieee_products,
    "native-high": lambda: products("tf32"),
}

#: Those whose whole step is replayed as CUDA graphs; they have no other part.
CAPTURED = {"triton-captured": ("triton", "fast"), "triton-lean-captured": ("triton", "lean")}

#: Pixels of a side up to which the truth is plain code in float64; the identities take a third of its memory there.
PLAIN_TRUTH = 257


class StepBench:
    """Forward, losses, backward and update of a fresh network on one random square image."""

    name = "step"
    doc = "forward, losses, backward and update of the network at the paper's widths"
    parts = ("forward", "backward", "step")
    plain = "reference"
    paper = 100
    ahead = False  # what a user waits for

    def cases(self, device: str, dtypes: Iterable[str], wanted: Wanted) -> list[Case]:
        sizes = {"depth": 2, "patch": 32}
        return [
            Case.of(self.name, {**sizes, "side": side, "channels": channels}, dtype, device, wanted.seed)
            for dtype in dtypes
            if dtype == "float32"  # half precision is autocast's affair in a training loop
            for side, channels in wanted.of(device, self.paper)
        ]

    def providers(self) -> list[str]:
        return [*PROVIDERS, *CAPTURED]

    def why_not(self, case: Case, provider: str) -> str | None:
        refusal = refuse_device(case, provider)
        if refusal or provider not in PRODUCTS:
            return refusal
        if provider.startswith("native"):
            unit = library.use_tiles(3)
            return None if unit else "the processor has no matrix unit: products are of vectors in any case"
        if kernel_precision(torch.float32, torch.device(case.device)) == "tf32x3":
            return None
        return "float32 products are fused multiply-adds here in any case, or of tf32, as was asked for"

    def prepare(self, case: Case, provider: str) -> Subject:
        backend, memory = PROVIDERS.get(provider) or CAPTURED[provider]
        model: nn.Module = model_of(case, backend, memory)
        if provider in CAPTURED:
            return _captured(model, image_of(case), backend)
        if provider == "compiled":
            torch.compiler.reset()
            model = torch.compile(model, dynamic=False)  # type: ignore[assignment]
        subject = _subject(model, image_of(case), backend)
        if provider not in PRODUCTS:
            return subject
        return replace(_within(PRODUCTS[provider], subject), lower=provider.endswith("high"))

    def truth(self, case: Case) -> dict[str, Tensor]:
        backend, memory = ("reference", "fast") if case["side"] <= PLAIN_TRUTH else ("torch", "lean")
        model = model_of(case, backend, memory).double()
        return _subject(model, image_of(case).double(), backend).results()

    def floor(self, case: Case, part: str) -> Floor | None:
        names = ("forward", "backward") if part == "step" else (part,)
        rows = rows_of(case["side"], case["channels"], multiprocessors=132, depth=case["depth"], patch=case["patch"])
        rows = [row for row in rows if row.name.endswith(names)]
        return Floor(sum(row.times * row.floor for row in rows), sum(row.times * row.flops for row in rows))

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels | None:
        return None


def model_of(case: Case, backend: str, memory: str) -> MSFormer:
    """A fresh network, clusters as channels, the same for every provider."""
    sizes = case["channels"], case["channels"], case["depth"], case["patch"]
    return MSFormer(3, *sizes, seed=case.seed, memory=memory, backend=backend).to(case.device)


def image_of(case: Case) -> Tensor:
    side = case["side"]
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(case.seed)).to(case.device)


def _subject(model: nn.Module, image: Tensor, backend: str) -> Subject:
    optimizer = _optimizer(model, image)
    kept: list[Tensor] = []

    def forward() -> Tensor:
        return self_guiding_losses(model(image), backend=backend).total

    def keep() -> None:
        kept[:] = [forward()]

    def backward() -> None:
        kept.pop().backward()

    def rest() -> None:
        kept.clear()
        optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def results() -> dict[str, Tensor]:
        total = forward()
        total.backward()
        found = _found(model, total)
        rest()
        return found

    def prepared() -> None:
        rest()
        keep()

    before: dict[str, Callable[[], object]] = {"forward": rest, "backward": prepared, "step": rest}
    parts: dict[str, Callable[[], object]] = {"forward": forward, "backward": backward, "step": step}
    return Subject(parts, before, results, close=rest)


def _within(made: Callable[[], AbstractContextManager[None]], subject: Subject) -> Subject:
    def within(call: Callable[[], Any]) -> Callable[[], Any]:
        def called() -> Any:
            with made():
                return call()

        return called

    parts, before = ({name: within(call) for name, call in each.items()} for each in (subject.parts, subject.before))
    return Subject(parts, before, within(subject.results), subject.close)


def _captured(model: nn.Module, image: Tensor, backend: str) -> Subject:
    """The step as two graphs, as the self-guided loop replays them: forward, losses and backward; update."""
    from msformer_fast.capture import WARM_UP, CudaDevice

    device, optimizer = CudaDevice(image.device), _optimizer(model, image)
    began = {name: value.clone() for name, value in model.state_dict().items()}

    def forward_backward() -> Tensor:
        total = self_guiding_losses(model(image), backend=backend).total
        total.backward()
        return total.detach()

    with device.running():
        for _ in range(WARM_UP):
            forward_backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        total, replay = device.record(forward_backward)
        _, update = device.record(optimizer.step)
        # As if nothing had been run.
        model.load_state_dict(began)
        for state in optimizer.state.values():
            state["momentum_buffer"].zero_()

    def results() -> dict[str, Tensor]:
        replay()
        return {name: value.clone() for name, value in _found(model, total).items()}

    def step() -> None:
        replay()
        update()

    return Subject({"step": step}, {"step": lambda: None}, results)


def _optimizer(model: nn.Module, image: Tensor) -> torch.optim.Optimizer:
    """Its steps are those of the self-guided loop's ``Descent``, to the bit."""
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)


def _found(model: nn.Module, total: Tensor) -> dict[str, Tensor]:
    """The loss and every gradient that is more than rounding."""
    gradients = {_plain(name): p.grad for name, p in model.named_parameters() if not name.endswith(NOISE)}
    found = {"total": total.detach()}
    return found | {f"gradient of {name}": value for name, value in gradients.items() if value is not None}


def _plain(name: str) -> str:
    return name.removeprefix("_orig_mod.")


BENCH = StepBench()


def test_speed(benchmark: Any, row: Any) -> None:
    row.run(benchmark)
