"""What is timed: an op, the whole step or a whole image, at given sizes, by each of its providers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from msformer_fast.benchmarks.options import DTYPES
from msformer_fast.benchmarks.traffic import Kernels as Kernels
from msformer_fast.errors import InputError
from msformer_fast.ops.backend import interpreting

#: By name, see ``options.DTYPES``.
TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}

#: Channels on either side of the paper's.
WIDTHS = (64, 128, 256)

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Case:
    """One row of work, whoever does it.

    Attributes:
        bench: name of the benchmark.
        sizes: by name, sorted; ``side`` is the height and width of the fine map in pixels.
        dtype: a name of :data:`msformer_fast.benchmarks.options.DTYPES`.
        device: ``"cpu"`` or ``"cuda"``.
        seed: of the random inputs; two cases that differ only there are equal.
    """

    bench: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = field(default=0, compare=False)

    @classmethod
    def of(cls, bench: str, sizes: Sizes, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> Case:
        return cls(bench, tuple(sorted(sizes.items())), dtype, device, seed)

    def __getitem__(self, size: str) -> int:
        return dict(self.sizes)[size]

    def get(self, size: str, default: int = 0) -> int:
        return dict(self.sizes).get(size, default)

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {value}" for name, value in self.sizes)
        return f"{self.bench}: {sizes}, {self.dtype}"

    def replace(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Wanted:
    """Which sizes: those of a quick run, or of a whole one, or these sides and channels.

    Attributes:
        sides: pixels; channels: of every map; ``None``: the benchmark's own.
    """

    quick: bool = False
    sides: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    seed: int = 0

    def of(self, device: str, paper: int) -> list[tuple[int, int]]:
        """Sides and channels: several sides at the paper's width, and several widths at one side."""
        if self.sides or self.channels:
            return [(side, width) for width in self.channels or (paper,) for side in self.sides or (129,)]
        sides = (65, 129) if self.quick else (65, 129, 257) if device == "cpu" else (65, 129, 257, 513, 1025)
        found = [(side, paper) for side in sides]
        if not self.quick:
            found += [(129 if device == "cpu" else 257, width) for width in WIDTHS]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Floor:
    """The least that a part must move, in bytes, and compute, in operations of its products."""

    bytes: int
    flops: int


@dataclass
class Subject:
    """A provider made ready for a case.

    Attributes:
        parts: what is timed, by name; a provider may lack some.
        before: what must have been done just before a part, untimed.
        results: outputs and gradients of fresh calls, by name; what is checked.
        close: gives back what the subject holds.
        lower: float32 products are less exact than float32, as they would be after asking PyTorch for that.
    """

    parts: dict[str, Callable[[], object]]
    before: dict[str, Callable[[], object]]
    results: Callable[[], dict[str, Tensor]]
    close: Callable[[], object] = field(default=lambda: None)
    lower: bool = False


class Bench(Protocol):
    """What every benchmark offers.

    Attributes:
        name: of the op, or ``"step"``, ``"image"``.
        parts: what is timed, in order.
        plain: the provider that the ratios are against.
        paper: channels of the published network, or the nearest that the op takes.
        doc: what is computed, in a sentence.
        ahead: whether, on a GPU, the device's work alone is timed; without, the host's launches count too.
    """

    name: str
    parts: tuple[str, ...]
    plain: str
    paper: int
    doc: str
    ahead: bool

    def cases(self, device: str, dtypes: Iterable[str], wanted: Wanted) -> list[Case]:
        """The cases of a run, the smallest first."""

    def providers(self) -> list[str]:
        """Every provider, those that this machine cannot run too."""

    def why_not(self, case: Case, provider: str) -> str | None:
        """Why a provider does not take part, in a sentence, or ``None``."""

    def prepare(self, case: Case, provider: str) -> Subject:
        """The provider, ready, on inputs that are the same for all providers of a case."""

    def truth(self, case: Case) -> dict[str, Tensor]:
        """What :attr:`Subject.results` should be, in float64."""

    def floor(self, case: Case, part: str) -> Floor | None:
        """The least that the part must move and compute, or ``None`` where nobody has counted."""

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels | None:
        """What the kernels launch and move on such a card, or ``None`` where nobody counts."""


def refuse_device(case: Case, provider: str) -> str | None:
    """A run in Triton's interpreter says nothing about speed, and the CPU's kernels run on no other device."""
    if provider == "native" and case.device != "cpu":
        return "kernels in C++ run on the CPU"
    if not provider.startswith("triton"):
        return None
    if case.device == "cpu":
        return "kernels run on the CPU in Triton's interpreter only, which is no figure of speed"
    if interpreting():
        return "TRITON_INTERPRET=1 is set: kernels would run in Triton's interpreter, which is no figure of speed"
    return None


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names, each of which is known.

    Raises:
        InputError: one is not; the message lists those that are.
    """
    names, known = list(given), list(known)
    for name in names:
        if name not in known:
            raise InputError(f"{what}: {name!r} is not known; choose from {', '.join(known)}")
    return names
