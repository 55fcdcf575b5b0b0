"""The compiler of PyTorch is not imported for nothing, and finds what it needs where it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from msformer_fast import ops
from msformer_fast.tracing import constant_result

_EAGER = """
import sys
import numpy as np
import torch
import msformer_fast
slow = {"torch._dynamo", "sympy"} - {*sys.modules}
image = np.random.default_rng().random((40, 44, 3), dtype=np.float32)
msformer_fast.segment(image, max_iterations=2, channels=8, clusters=5)
print(slow & {*sys.modules})
"""

_THEN_COMPILED = """
import torch
from msformer_fast import ops

def loss(logits):
    return ops.clustering_loss(2 * logits)

seen = []
logits = torch.randn(2, 7, 9, 5)
first = loss(logits)
import torch._dynamo
compiled = torch.compile(loss, backend=lambda graph, _: seen.append(graph) or graph.forward, fullgraph=True)
torch.testing.assert_close(compiled(logits), first, rtol=0, atol=0)
torch.testing.assert_close(loss(logits), first, rtol=0, atol=0)
print(len(seen), "clustering_loss" in seen[0].code)
"""


def _printed(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_image_is_segmented_without_the_compiler() -> None:
    """And without symbolic algebra, which PyTorch imports at times."""
    assert _printed(_EAGER) == "set()"


def test_what_ran_before_the_compiler_came_is_compiled_whole() -> None:
    assert _printed(_THEN_COMPILED) == "1 True"


def test_a_kernel_is_hidden_once_the_compiler_is_there() -> None:
    import torch._dynamo

    with torch.profiler.profile():  # which the registered op is called for
        ops.clustering_loss(torch.randn(1, 3, 4, 5))
    (hiding,) = torch.library._maybe_get_opdef("msformer_fast::clustering_loss")._backend_fns.values()  # type: ignore[attr-defined]
    hidden = getattr(hiding.__wrapped__, "__dynamo_disable")
    assert type(hidden).__name__ != "_Unhidden"


def test_a_constant_result_is_called_while_compiling_alone() -> None:
    calls = []

    @constant_result
    def factor() -> int:
        calls.append(1)
        return 3

    compiled = torch.compile(lambda x: factor() * x, backend="eager", fullgraph=True)
    x = torch.randn(4)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), 3 * x)
    assert len(calls) == 1
    assert factor() == 3


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_descent_is_that_of_pytorch_to_the_bit(fused: bool, momentum: float) -> None:
    from msformer_fast.descent import Descent

    start = [torch.randn(3, 5), torch.randn(7), torch.randn(2)]
    own, theirs = ([torch.nn.Parameter(each.clone()) for each in start] for _ in range(2))
    descent = Descent(own, learning_rate=0.1, momentum=momentum, fused=fused)
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, fused=fused, foreach=not fused)
    for step in range(4):
        given = [torch.randn_like(each) for each in start]
        for parameters in (own, theirs):
            for index, (parameter, gradient) in enumerate(zip(parameters, given, strict=True)):
                # The last has no gradient at first.
                parameter.grad = None if index == 2 and step < 2 and not fused else gradient.clone()
        descent.step()
        optimizer.step()
        for mine, other in zip(own, theirs, strict=True):
            assert torch.equal(mine, other)
    descent.clear()
    assert all(parameter.grad is None for parameter in own)
