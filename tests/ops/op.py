"""One op as the contract sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from tests.ops.draws import Inputs, Sizes


@dataclass(frozen=True)
class Op:
    """A row of the table in ``cases.py``.

    Attributes:
        name: of the op.
        call: runs it on inputs with options and a backend; returns its outputs, those that are differentiable first.
        draw: float64 inputs of given sizes.
        sizes: named variants for values and gradients: sizes that no block divides, batch > 1, other options.
        tiny: sizes for gradcheck, opcheck and compilation.
        other: further sizes of the same kind as ``tiny``, which must not compile anew.
        differentiable: how many outputs are, counted from the first.
        options: keyword options, by the names in the sizes.
        backends: those beside the reference that this op has.
        plain: those among them that are expressions of PyTorch's operators, with no registered op.
        of_rounded: outputs that are small differences within output 0, which is rounded to the inputs' dtype: they are
            held to that dtype's epsilon, at the size of output 0.
        luck: variants that amplify rounding, and how many times PyTorch's our error may be there.
        slow: variants whose errors in several draws take minutes in the interpreter.
        of: what this row is about, where an op has several.
    """

    name: str
    call: Callable[..., tuple[Tensor, ...]]
    draw: Callable[[Sizes], Inputs]
    sizes: dict[str, Sizes]
    tiny: Sizes
    other: tuple[Sizes, ...]
    differentiable: int = 1
    options: tuple[str, ...] = field(default=())
    backends: tuple[str, ...] = ("triton", "torch")
    plain: tuple[str, ...] = ()
    of_rounded: tuple[int, ...] = ()
    luck: dict[str, float] = field(default_factory=dict)
    slow: tuple[str, ...] = ()
    of: str = ""

    @property
    def row(self) -> str:
        """Its name in the table."""
        return f"{self.name}_{self.of}" if self.of else self.name

    def run(self, inputs: Inputs, sizes: Sizes, backend: str | None) -> tuple[Tensor, ...]:
        options = {name: sizes[name] for name in self.options if name in sizes}
        return self.call(inputs, backend=backend, **options)
