"""Our error and PyTorch's own, for every op, dtype and size of the contract, both against float64.

``python -m tests.harness.error_table [OP ...]`` prints the worst of each op and dtype: of its outputs and of its
gradients, relative to the norm of the truth. Without a GPU the kernels run in the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tests.harness.error_rule import Error
from tests.ops.cases import OPS
from tests.ops.test_contract import DTYPES, leaves, run


def main() -> None:
    torch.manual_seed(0)
    stack = contextlib.ExitStack()
    if not torch.cuda.is_available():
        from tests.harness.interpreter import fixed

        stack.enter_context(fixed(poison=True))
    print("| op | dtype | outputs: ours | PyTorch's own | gradients: ours | PyTorch's own |")
    print("| --- | --- | --- | --- | --- | --- |")
    with stack:
        for op in [OPS[name] for name in sys.argv[1:] or OPS]:
            for dtype in DTYPES:
                worst = {"outputs": (0.0, 0.0), "gradients": (0.0, 0.0)}
                for sizes in op.sizes.values():
                    inputs = {name: value.to(dtype) for name, value in op.draw(sizes).items()}
                    ours, our_gradients = run(op, leaves(inputs, dtype), sizes, "triton")
                    theirs, their_gradients = run(op, leaves(inputs, dtype), sizes, "reference")
                    truth, true_gradients = run(op, leaves(inputs, torch.float64), sizes, "reference")
                    pairs = [("outputs", ours[i], theirs[i], truth[i]) for i in range(op.differentiable)]
                    pairs += [("gradients", our_gradients[n], their_gradients[n], true_gradients[n]) for n in inputs]
                    for kind, mine, yours, exact in pairs:
                        both = Error.of(mine, exact).whole, Error.of(yours, exact).whole
                        worst[kind] = max(worst[kind], both)
                cells = " | ".join(f"{value:.1e}" for pair in worst.values() for value in pair)
                print(f"| {op.row} | {str(dtype).removeprefix('torch.')} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
