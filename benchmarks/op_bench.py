"""The benchmark of one op: inputs, providers, truth and floor from a few functions of the op's own file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from msformer_fast.benchmarks.case import Case, Floor, Kernels, Sizes, Subject, Wanted, refuse_device
from msformer_fast.ops.precision import input_precision

Inputs = dict[str, Tensor]
Draw = Callable[[Sizes, "Random"], Inputs]
Call = Callable[..., tuple[Tensor, ...]]


class Random:
    """Fresh random tensors in float64 on the CPU, the same for every provider of a case."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class OpBench:
    """See :class:`msformer_fast.benchmarks.case.Bench`.

    Attributes:
        draw: inputs in float64, by name; all of them are differentiated.
        call: runs the op, ``call(inputs, sizes, backend=, memory=)``; returns the outputs that are differentiated.
        floor_of: (sizes, dtype) to bytes and operations, each by ``"forward"`` and ``"backward"``.
        rivals: what people use instead, by name: (inputs, sizes) to the same outputs.
        compiled_rivals: those of them that are timed under ``torch.compile`` too.
        memories: values of ``memory=`` that the op has; ``None`` where it has no such option.
        sizes: of the fixed ones, by name.
        paper: the channels that the pixels are varied at; ``multiple``: what channels must be divisible by.
        truth_backend: the plain one, or ``"torch"`` where plain code takes minutes at these sizes; tests hold one to
            the other in float64.
        compiled: whether the plain code is timed under ``torch.compile``.
    """

    name: str
    doc: str
    draw: Draw
    call: Call
    floor_of: Callable[[Sizes, torch.dtype], tuple[dict[str, int], dict[str, int]]]
    rivals: Mapping[str, Callable[[Inputs, Sizes], tuple[Tensor, ...]]] = field(default_factory=dict)
    compiled_rivals: tuple[str, ...] = ()
    memories: tuple[str, ...] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    paper: int = 100
    multiple: int = 1
    truth_backend: str = "reference"
    compiled: bool = True
    backends: tuple[str, ...] = ("torch", "native", "triton")
    plain: str = "reference"
    parts: tuple[str, ...] = ("forward", "backward", "both")
    ahead: bool = True  # a step waits for its kernels; who launches them is the step's affair

    def cases(self, device: str, dtypes: Iterable[str], wanted: Wanted) -> list[Case]:
        return [
            Case.of(self.name, {**self.sizes, "side": side, "channels": channels}, dtype, device, wanted.seed)
            for dtype in dtypes
            for side, channels in wanted.of(device, self.paper)
            if channels % self.multiple == 0
        ]

    def providers(self) -> list[str]:
        names = [self.plain] if self.plain == "reference" else []
        for backend in self.backends:
            # The CPU's kernels keep the same whatever the memory.
            others = () if backend == "native" else self.memories or ()
            names += [backend] + [f"{backend}-{memory}" for memory in others if memory != "fast"]
        if self.compiled:
            names.append("compiled")
        for rival in self.rivals:
            names += [rival] + [f"{rival}-compiled"] * (rival in self.compiled_rivals)
        return names

    def why_not(self, case: Case, provider: str) -> str | None:
        return refuse_device(case, provider)

    def inputs(self, case: Case, dtype: torch.dtype | None = None) -> Inputs:
        """Rounded to the case's dtype, then in ``dtype``; leaves that ask for gradients."""
        return _leaves(_drawn(self.draw, case.sizes, case.torch_dtype, case.seed), case.device, dtype)

    def provider(self, name: str, sizes: Sizes) -> Callable[[Inputs], tuple[Tensor, ...]]:
        """Inputs to outputs."""
        base, _, rest = name.partition("-")
        if name == "compiled" or name.removesuffix("-compiled") in self.compiled_rivals:
            inner = "reference" if name == "compiled" else name.removesuffix("-compiled")
            if name != inner:
                torch.compiler.reset()  # else the variants of earlier sizes count against its limit
                return torch.compile(self.provider(inner, sizes), dynamic=False)
        if name in self.rivals:
            rival = self.rivals[name]
            return lambda inputs: rival(inputs, sizes)
        options: dict[str, Any] = {"backend": base}
        if self.memories is not None:
            options["memory"] = rest or "fast"
        return lambda inputs: self.call(inputs, sizes, **options)

    def prepare(self, case: Case, provider: str) -> Subject:
        return self._subject(self.provider(provider, dict(case.sizes)), self.inputs(case), case)

    def truth(self, case: Case) -> dict[str, Tensor]:
        inputs = self.inputs(case, torch.float64)
        return self._subject(self.provider(self.truth_backend, dict(case.sizes)), inputs, case).results()

    def _subject(self, call: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs, case: Case) -> Subject:
        leaves = list(inputs.values())
        kept: list[tuple[Tensor, ...]] = []
        grads: list[Tensor] = []

        def forward() -> tuple[Tensor, ...]:
            return call(inputs)

        def keep() -> None:
            kept[:] = [forward()]
            if not grads:
                grads.extend(_gradient(value, index, case) for index, value in enumerate(kept[0]))

        def backward() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(kept.pop(), leaves, grads, allow_unused=True)

        def both() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(forward(), leaves, grads, allow_unused=True)

        def results() -> dict[str, Tensor]:
            keep()
            found = {f"output {index}": value.detach() for index, value in enumerate(kept[0])}
            gradients = zip(inputs, backward(), strict=True)
            return found | {f"gradient of {name}": value for name, value in gradients if value is not None}

        def close() -> None:
            for held in (kept, grads, leaves, inputs):
                held.clear()

        return Subject(
            parts={"forward": forward, "backward": backward, "both": both},
            before={"forward": kept.clear, "backward": keep, "both": lambda: None if grads else keep()},
            results=results,
            close=close,
        )

    def floor(self, case: Case, part: str) -> Floor | None:
        moved, flops = self.floor_of(dict(case.sizes), case.torch_dtype)
        names = ("forward", "backward") if part == "both" else (part,)
        return Floor(sum(moved[name] for name in names), sum(flops[name] for name in names))

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels:
        precision = input_precision(torch.float32, target)
        found = self._recorded(case.replace(device="cpu"), multiprocessors, target, precision)
        if part != "both":
            return dict(found[part])
        return {f"{name}, {half}": row for half, rows in found.items() for name, row in rows.items()}

    @functools.lru_cache(maxsize=256)  # noqa: B019 (benches live as long as the process)
    def _recorded(self, case: Case, multiprocessors: int, target: str | None, precision: str) -> dict[str, Kernels]:
        """Kernels of both halves; ``precision`` is what launchers see of the float32 products."""
        from msformer_fast.benchmarks.traffic.recorded import recorded_launches, to_memory

        sizes, found = dict(case.sizes), {}
        with recorded_launches(multiprocessors, target) as launches:
            drawn = {name: value.to(case.torch_dtype) for name, value in self.draw(sizes, Random(case.seed)).items()}
            subject = self._subject(self.provider("triton", sizes), _leaves(drawn), case)
            subject.before["backward"]()  # the forward
            found["forward"] = to_memory(launches)
            launches.clear()
            subject.parts["backward"]()
            found["backward"] = to_memory(launches)
        return found


def _leaves(drawn: Inputs, device: str = "cpu", dtype: torch.dtype | None = None) -> Inputs:
    return {name: value.to(device, dtype or value.dtype).detach().requires_grad_() for name, value in drawn.items()}


@functools.lru_cache(maxsize=1)
def _drawn(draw: Draw, sizes: tuple[tuple[str, int], ...], dtype: torch.dtype, seed: int) -> Inputs:
    """Once for all providers of a case: a hundred million numbers take seconds. Nobody writes into them."""
    return {name: value.to(dtype) for name, value in draw(dict(sizes), Random(seed)).items()}


def _gradient(value: Tensor, index: int, case: Case) -> Tensor:
    """What arrives at an output: 1 at a loss, else random numbers rounded to the case's dtype, for the truth too."""
    if value.ndim == 0:
        return torch.ones_like(value)
    drawn = Random(case.seed + 1 + index)(*value.shape)
    return drawn.to(case.torch_dtype).to(value.device, value.dtype)
