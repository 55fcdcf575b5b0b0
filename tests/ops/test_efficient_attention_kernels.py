"""Efficient attention on its kernels, beyond the contract: bytes, launches, launch table, batch norm, autocast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, InputError, ops
from msformer_fast.floors import efficient_attention as floor
from msformer_fast.ops.batch_norm import BatchNorm

from ..harness.error_rule import Errors, assert_no_worse, errors_of
from ..harness.tf32 import products_as_on_a_card
from .cases import OPS
from .draws import batch_norm_of

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counted, or in float64, in the interpreter")


def parameters(
    c: int, dtype: torch.dtype = torch.float32, ck: int | None = None, cv: int | None = None
) -> list[Tensor]:
    """Weight and bias of keys, queries, values and reprojection, weight and bias of the norm."""
    ck, cv = ck or c, cv or c
    shapes = [(ck, c), (ck,), (ck, c), (ck,), (cv, c), (cv,), (c, cv), (c,), (c,), (c,)]
    return [(torch.randn(s, dtype=dtype, device=DEVICE) * s[-1] ** -0.5).requires_grad_() for s in shapes]


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True)


@interpreted
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "batch norm"])
@pytest.mark.parametrize(("heads", "dtype"), [(1, torch.float32), (2, torch.bfloat16)], ids=str)
def test_bytes_and_launches(normed: bool, heads: int, dtype: torch.dtype) -> None:
    """As the recorded launches; three of them forward, five backward, with a batch norm's gradient or without."""
    from tests.harness.traffic import counted_as_recorded

    def call() -> Iterator[None]:
        c, ck, cv = 20, 24, 12
        x, given = tokens(1, 15, 35, c, dtype=dtype), parameters(c, dtype, ck, cv)
        bn = batch_norm_of(x, torch.ones_like(given[8]), torch.zeros_like(given[8])) if normed else None
        yield
        outputs = ops.efficient_attention(x, *given, heads=heads, batch_norm=bn, backend="triton")
        yield
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
        yield

    forward, backward = counted_as_recorded(call)
    assert forward.launches == 3
    assert backward.launches == 5


def test_the_map_is_read_as_often_as_predicted() -> None:
    """At the paper's size, with a program a multiprocessor: what is not the map is partial sums and small matrices."""
    from msformer_fast.benchmarks.traffic.recorded import moved, recorded_launches

    least = floor.bytes_moved(1, 257, 257, 100, torch.float32)
    with recorded_launches(132, "sm_90") as launches:
        x, given = tokens(1, 257, 257, 100), parameters(100, torch.float32, 100, 100)
        outputs = ops.efficient_attention(x, *given, backend="triton")
        forward = moved(launches)
        launches.clear()
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
        backward = moved(launches)
    for name, kernels, most in (("forward", forward, 1.15), ("backward", backward, 1.5)):
        assert least[name] <= sum(loaded + stored for _, loaded, stored in kernels.values()) <= most * least[name]


@interpreted
@pytest.mark.parametrize("card", ["sm_80", "gfx942"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")]
)
@pytest.mark.parametrize(("channels", "heads"), [(20, 2), pytest.param(40, 1, marks=pytest.mark.slow)])
def test_settings_of_the_cards(
    card: str, dtype: torch.dtype, precision: str, channels: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that cards use: products in pieces, blocks of channels. (The contract runs the interpreter's.)"""
    monkeypatch.setattr("msformer_fast.kernels.efficient_attention.target_of", lambda device: card)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    op, sizes = OPS["efficient_attention"], {"B": 1, "H": 3, "W": 13, "C": channels, "heads": heads}
    sizes["batch_norm"] = heads > 1

    def draw() -> dict[str, Errors]:
        inputs = {name: value.to(dtype) for name, value in op.draw(sizes).items()}
        three = []
        for backend, wide in (("triton", dtype), ("reference", dtype), ("reference", torch.float64)):
            leaves = {name: value.to(DEVICE, wide).requires_grad_() for name, value in inputs.items()}
            with products_as_on_a_card(DEVICE):
                outputs = op.run(leaves, sizes, backend)
                gradients = torch.autograd.grad(outputs, list(leaves.values()), [o.detach() for o in outputs])
            three.append(dict(zip(("y", "context", *leaves), (*outputs, *gradients), strict=True)))
        return {name: errors_of(name, *(found[name] for found in three)) for name in three[0]}

    assert_no_worse(draw)


@interpreted
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_batch_norm_in_front(backend: str) -> None:
    """The same as normalising first; its statistics get no gradient, the keys' bias one of exactly zero."""
    given = parameters(6, torch.float64)
    raw = (3 + 2 * torch.randn(2, 3, 5, 6, dtype=torch.float64)).requires_grad_()
    weight, bias = torch.rand(6, dtype=torch.float64).requires_grad_(), tokens(6, dtype=torch.float64)
    bn = batch_norm_of(raw, weight, bias)
    mean, var = bn.mean.requires_grad_(), bn.var.requires_grad_()
    outputs = ops.efficient_attention(raw, *given, batch_norm=bn, backend=backend)
    truth = ops.efficient_attention(bn.apply(raw), *given, backend="reference")
    leaves = [raw, weight, bias, *given]
    weights = [torch.randn_like(o) for o in truth]
    got = torch.autograd.grad(outputs, [*leaves, mean, var], weights, allow_unused=True)
    wanted = torch.autograd.grad(truth, leaves, weights)
    for value, expected in zip([*outputs, *got[:-2]], [*truth, *wanted], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    assert got[-2:] == (None, None)
    assert torch.equal(got[4], torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("used", [0, 1], ids=["result", "context"])
def test_one_of_the_two_outputs_is_enough(used: int) -> None:
    x, given = tokens(1, 4, 5, 6), parameters(6)
    gradients = []
    for backend in ("triton", "reference"):
        output = ops.efficient_attention(x, *given, backend=backend)[used]
        gradients.append(torch.autograd.grad(output.square().sum(), [x, given[0], given[4]]))
    for ours, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_large_keys_do_not_overflow() -> None:
    """exp(1e4) does not exist; keys that grow from block to block scale what was summed before."""
    given = parameters(3)
    x = torch.linspace(0, 1, 300, device=DEVICE).view(1, 10, 10, 3) * 1e4
    for flipped in (x, x.flip(1)):
        results = [ops.efficient_attention(flipped, *given[:8], norm=False, backend=b) for b in ("triton", "reference")]
        for ours, wanted in zip(*results, strict=True):
            assert ours.isfinite().all()
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_autocast_takes_a_map_of_its_own_dtype_and_float32_parameters(dtype: torch.dtype, residual: bool) -> None:
    """As the torch backend: products and context in autocast's dtype, gradients in the tensors' own."""
    x, given = tokens(1, 4, 5, 6, dtype=dtype), parameters(6)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        ours = ops.efficient_attention(x, *given, residual=residual, backend="triton")
        theirs = ops.efficient_attention(x, *given, residual=residual, backend="torch")
    for value, wanted in zip(ours, theirs, strict=True):
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(value, wanted, rtol=0.05, atol=0.05)
    gradients = torch.autograd.grad(ours, [x, *given], [torch.ones_like(o) for o in ours])
    assert [g.dtype for g in gradients] == [t.dtype for t in (x, *given)]


@pytest.mark.parametrize("height", [0, 3])
def test_no_pixels_or_no_images(height: int) -> None:
    x, given = tokens(2 if height == 0 else 0, height, 5, 6), parameters(6)
    y, context = ops.efficient_attention(x, *given, backend="triton")
    assert y.shape == x.shape and context.shape == (len(x), 1, 6, 6)
    assert torch.equal(context, torch.zeros_like(context))
    gradients = torch.autograd.grad((y.sum(), context.sum()), [x, *given])
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_what_is_refused() -> None:
    with pytest.raises(BackendError, match="at most 256 channels, got 257"):
        ops.efficient_attention(torch.zeros(1, 2, 2, 257), *parameters(257), backend="triton")
    with pytest.raises(BackendError, match="at most 256 channels, got 300"):
        ops.efficient_attention(torch.zeros(1, 2, 2, 8), *parameters(8, ck=300), backend="triton")
    given = parameters(4)
    bn = BatchNorm(torch.ones(4), torch.zeros(4), torch.zeros(5), torch.ones(4), 1e-5)
    with pytest.raises(InputError, match=r"batch_norm.mean must have shape \(C\)"):
        ops.efficient_attention(torch.zeros(1, 2, 2, 4), *given, batch_norm=bn, backend="reference")


@interpreted
@pytest.mark.parametrize("loss_scale", [pytest.param(1.0, marks=pytest.mark.slow), 2.0**10], ids=str)
def test_float16_holds_the_gradients_of_many_tokens(monkeypatch: pytest.MonkeyPatch, loss_scale: float) -> None:
    """Of 257 x 257: a probability of size 1 / N is less than float16's smallest normal number, and the gradient of the
    sums over all tokens, times a loss's scale, more than its largest. Neither is ever rounded to it."""
    from msformer_fast.kernels import efficient_attention_table as table

    many = {part: (4096, *row[1:]) for part, row in table.INTERPRETER.items()}
    monkeypatch.setattr(table, "INTERPRETER", many)
    x, given = tokens(1, 257, 257, 8, dtype=torch.float16), parameters(8)
    # One direction for all tokens: what comes through the sums is as large as what comes past them.
    grad = (torch.randn(8, device=DEVICE) + 0.1 * torch.randn(1, 257, 257, 8, device=DEVICE)).half()

    with torch.autocast(DEVICE, dtype=torch.float16):
        y, _ = ops.efficient_attention(x, *given, residual=False, backend="triton")
    gradients = torch.autograd.grad(y, [x, *given], loss_scale * grad)

    assert all(gradient.isfinite().all() for gradient in gradients)

    exact = [t.detach().double().requires_grad_() for t in (x, *given)]
    y, _ = ops.efficient_attention(*exact, residual=False, backend="reference")
    (truth,) = torch.autograd.grad(y, exact[:1], grad.double())
    error = (gradients[0].double() / loss_scale - truth).norm() / truth.norm()
    assert error < 0.45 * torch.finfo(torch.float16).eps  # with rounded probabilities it is more than half
