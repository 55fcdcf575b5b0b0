"""What the contract does not cover of the Mix-FFN's kernels: strips, statistics of the result, launches and bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, ops
from msformer_fast.floors import mix_ffn as floor
from msformer_fast.identities.mix_ffn import Options, Parameters
from msformer_fast.limits import MIX_FFN_ROW

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counted, or in float64, in the interpreter")
OPTIONS = Options(norm=True, inner_norm=True, inner_skip=True, residual=True, eps=1e-5)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles and blocks of channels at the sizes drawn here."""
    monkeypatch.setattr("msformer_fast.kernels.mix_ffn.INTERPRETER", (4, 8, 32, 16, 4, 1))


def draw(B: int, H: int, W: int, C: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Parameters]:
    def rand(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(DEVICE, dtype)

    p = Parameters(
        rand(D, C, scale=C**-0.5),
        rand(D, scale=0.5),
        rand(D, 1, 3, 3, scale=0.4),
        rand(D, scale=0.3),
        rand(C, D, scale=D**-0.5),
        rand(C, scale=0.3),
        1 + rand(C, scale=0.3),
        rand(C, scale=0.3),
        1 + rand(D, scale=0.3),
        rand(D, scale=0.3),
    )
    return rand(B, H, W, C), p


def exact_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(y.detach().double().flatten(0, 2), 0, correction=0)
    return mean, var


@pytest.mark.parametrize("options", [OPTIONS, OPTIONS._replace(inner_norm=False, inner_skip=False)])
@pytest.mark.parametrize("strip", [1, 2, 4])
def test_strips_change_nothing(small_blocks: None, strip: int, options: Options) -> None:
    """y and dt to the last bits, which numpy's products round by the place of a row in its block; the parameters'
    gradients, added in another order, and the statistics to rounding."""
    from msformer_fast.kernels.mix_ffn import mix_ffn_backward, mix_ffn_forward

    t, p = draw(2, 5, 5, 20, 40)
    p = p if options.inner_norm else p._replace(inner_norm_weight=None, inner_norm_bias=None)
    dy = torch.randn_like(t)
    whole, hidden, inner, vectors, moments = mix_ffn_forward(t, p, options, keep=True, statistics=True)
    dt, gradients = mix_ffn_backward(dy, t, p, options, hidden, inner, vectors)
    y, nothing, same, _, others = mix_ffn_forward(t, p, options, statistics=True, strip=strip)
    assert nothing.numel() == 0
    torch.testing.assert_close(y, whole, rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(same, inner, rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(others, moments)
    found, sums = mix_ffn_backward(dy, t, p, options, nothing, inner, vectors, strip=strip)
    torch.testing.assert_close(found, dt, rtol=2e-5, atol=2e-5)
    for value, wanted in zip(sums, gradients, strict=True):
        assert (value is None) == (wanted is None)
        if value is not None:
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-4)


@interpreted
@pytest.mark.parametrize(
    ("hidden", "memory", "inner_norm"),
    [(10, "fast", True), (32, "fast", False), (40, "fast", True), (40, "lean", True)],
)
def test_inner_tiles(hidden: int, memory: str, inner_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles whose neighbours are all in the image are read without a mask, beside others; fewer hidden channels than a
    block, whole blocks of them, and a last block that begins early."""
    from tests.ops.cases import OPS
    from tests.ops.test_contract import leaves, run

    monkeypatch.setattr("msformer_fast.kernels.mix_ffn.INTERPRETER", (4, 4, 16, 16, 4, 1))
    monkeypatch.setattr("msformer_fast.kernels.mix_ffn.BUFFER_BYTES", 1)
    monkeypatch.setattr("msformer_fast.kernels.mix_ffn.LEAST_ROWS", 6)
    sizes = {"B": 1, "H": 9, "W": 10, "C": 5, "D": hidden, "memory": memory, "inner_norm": inner_norm}
    inputs = OPS["mix_ffn"].draw(sizes)
    ours = run(OPS["mix_ffn"], leaves(inputs, torch.float64), sizes, "triton")
    truth = run(OPS["mix_ffn"], leaves(inputs, torch.float64), sizes, "reference")
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strip", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_the_result(small_blocks: None, dtype: torch.dtype, strip: int | None) -> None:
    """Those of y as it is stored; a channel far from 0 and nearly constant, and a constant one, keep their digits."""
    from msformer_fast.kernels.mix_ffn import mix_ffn_forward

    t, p = draw(2, 5, 9, 12, 40, dtype)
    p.fc2_weight[0] *= 0.03
    p.fc2_bias[:2] = torch.tensor([1000.0, -500.0])
    p.fc2_weight[1] = 0
    t[..., 0] *= 0.003
    t[..., 1] = 0
    y, *_, (mean, var) = mix_ffn_forward(t, p, OPTIONS, statistics=True, strip=strip)
    assert mean.dtype == var.dtype == torch.float32
    wanted_mean, wanted_var = exact_moments(y)
    torch.testing.assert_close(mean.double(), wanted_mean, rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(var.double(), wanted_var, rtol=2e-5, atol=0)
    assert var[1] == 0
    if dtype == torch.float32:
        assert 1e-3 < var[0].sqrt() < 5e-2


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
@pytest.mark.parametrize("memory", ["fast", "lean"])
def test_with_statistics_is_the_same_op(small_blocks: None, backend: str, memory: str) -> None:
    t, p = draw(2, 3, 4, 8, 20)
    t.requires_grad_()
    options = {"memory": memory, "backend": backend, "residual": False}
    norms = {name: value for name, value in p._asdict().items() if name.startswith("inner_norm")}
    y, mean, var = ops.mix_ffn_with_statistics(t, *p[:6], norm_weight=p.norm_weight, **norms, **options)
    wanted = ops.mix_ffn(t, *p._replace(norm_bias=None), **options)
    assert torch.equal(y, wanted)
    assert not mean.requires_grad and not var.requires_grad
    for value, truth in zip((mean, var), exact_moments(y), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(result, t, weights)[0] for result in (y, wanted))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_statistics_of_nothing(backend: str) -> None:
    t, p = draw(0, 5, 6, 8, 20)
    y, mean, var = ops.mix_ffn_with_statistics(t, *p, backend=backend)
    assert y.shape == t.shape
    assert torch.equal(mean, torch.zeros_like(mean)) and mean.shape == (8,)
    assert torch.equal(var, torch.zeros_like(var)) and var.shape == (8,)


def test_statistics_take_the_arguments_of_the_op() -> None:
    t, p = draw(1, 2, 2, 4, 8)
    with pytest.raises(TypeError):
        ops.mix_ffn_with_statistics(t, *p, residuals=True)
    with pytest.raises(TypeError):
        ops.mix_ffn_with_statistics(t, *p[:5])
    with pytest.raises(TypeError):
        ops.mix_ffn_with_statistics(t, *p, t)
    with pytest.raises(TypeError):
        ops.mix_ffn_with_statistics(t, *p, fc1_weight=p.fc1_weight)


@interpreted
@pytest.mark.parametrize("memory", ["fast", "lean", pytest.param("strips", marks=pytest.mark.slow)])
def test_launches_and_bytes(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel reads and writes what its recorded launches say, and there are as few as that."""
    from msformer_fast.kernels import mix_ffn as kernels
    from tests.harness.traffic import counted_as_recorded

    strip = 5 if memory == "strips" else 13
    monkeypatch.setattr(kernels, "strip_rows", lambda *sizes: strip)

    def call() -> Iterator[None]:
        t, p = draw(2, 13, 31, 20, 72)
        t, p = t.requires_grad_(), Parameters(*(value.requires_grad_() for value in p))
        yield
        kept = "fast" if memory == "fast" else "lean"
        y, _, _ = ops.mix_ffn_with_statistics(t, *p, memory=kept, backend="triton")
        yield
        y.backward(torch.ones_like(y))
        yield

    forward, backward = counted_as_recorded(call)
    strips = 3 if memory == "strips" else 1
    assert forward.launches == 2 * strips + 1
    assert backward.launches == (3 if memory == "fast" else 4) * strips + 1


def test_bytes_at_the_papers_size() -> None:
    """With n bytes of tokens and w = 4 n of hidden activations: forward 3 n + 2 w, backward 6 n + 7 w, little more."""
    from msformer_fast.benchmarks.traffic.recorded import recorded_launches, to_memory

    n = 257 * 257 * 100 * 4
    least = floor.bytes_moved(1, 257, 257, 100, 400, torch.float32)
    for statistics in (False, True):
        op = ops.mix_ffn_with_statistics if statistics else ops.mix_ffn
        with recorded_launches(132, "sm_90") as launches:
            t, p = draw(1, 257, 257, 100, 400)
            t, p = t.requires_grad_(), Parameters(*(value.requires_grad_() for value in p))
            result = op(t, *p, backend="triton")
            forward = to_memory(launches)
            launches.clear()
            y = result[0] if isinstance(result, tuple) else result
            y.backward(torch.ones_like(y))
            backward = to_memory(launches)
        bytes_of = [sum(loaded + stored for _, loaded, stored in found.values()) for found in (forward, backward)]
        assert 11 * n <= bytes_of[0] <= 11.2 * n
        assert 34 * n <= bytes_of[1] <= 34.8 * n
        assert bytes_of[0] >= least["forward"] and bytes_of[1] >= least["backward"]


@interpreted
def test_what_is_kept(small_blocks: None) -> None:
    """Fast keeps the hidden activations in the tokens' dtype, lean none; both keep two numbers a pixel."""
    from tests.ops.test_memory import saved_bytes

    for dtype in (torch.float32, torch.bfloat16):
        t, p = draw(1, 3, 5, 8, 20, dtype)
        t.requires_grad_()
        fast, lean = (
            saved_bytes(lambda t, m=m, p=p: ops.mix_ffn(t, *p, memory=m, backend="triton"), t) for m in ("fast", "lean")
        )
        assert fast - lean == 3 * 5 * 20 * dtype.itemsize
        with torch.no_grad():
            assert saved_bytes(lambda t, p=p: ops.mix_ffn(t, *p, backend="triton"), t) == 0


def test_rows_of_a_strip() -> None:
    """One strip of a small map; of a large one row buffers of about 24 MB, and never less than 16 rows."""
    from msformer_fast.kernels.mix_ffn import BUFFER_BYTES, LEAST_ROWS, strip_rows

    assert strip_rows(1, 65, 65, 400, 4) == 65
    rows = strip_rows(1, 257, 257, 400, 4)
    assert rows == 56 and rows * 257 * 400 * 4 <= BUFFER_BYTES
    assert strip_rows(8, 4096, 4096, 1024, 4) == LEAST_ROWS
    assert strip_rows(0, 0, 0, 8, 4) == 1


@pytest.mark.parametrize(("c", "d", "message"), [(257, 4, "256 channels, got 257"), (2, 2049, "2048 hidden channels")])
def test_limits_are_refused(c: int, d: int, message: str) -> None:
    t, p = draw(1, 2, 2, c, d)
    with pytest.raises(BackendError, match=f"mix_ffn: .*at most {message}"):
        ops.mix_ffn(t, *p, backend="triton")


@interpreted
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_autocast(small_blocks: None, norm: bool, residual: bool) -> None:
    """The result in the dtype that the reference has, gradients in those of the parameters; the norm in float32."""
    t, p = draw(1, 3, 4, 8, 20)
    p = p if norm else p._replace(norm_weight=None, norm_bias=None)
    found = {}
    for backend in ("triton", "reference"):
        leaves = [None if v is None else v.clone().requires_grad_() for v in (t, *p)]
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            y = ops.mix_ffn(*leaves, norm=norm, residual=residual, backend=backend)
        y.sum().backward()
        found[backend] = [y, *(v.grad for v in leaves if v is not None)]
    for ours, theirs in zip(*found.values(), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= 0.02 * theirs.norm() + 1e-3


@interpreted
@pytest.mark.parametrize(("channels", "hidden"), [(140, 96), (8, 1040)])
def test_many_channels(channels: int, hidden: int) -> None:
    """Beyond 128 narrow channels, and a hidden width of many blocks, against the reference in float64."""
    t, p = draw(1, 3, 5, channels, hidden, torch.float64)
    results = []
    for backend in ("triton", "reference"):
        leaves = [v.clone().requires_grad_() for v in (t, *p)]
        y = ops.mix_ffn(*leaves, backend=backend)
        results.append([y, *torch.autograd.grad((y * y).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-11 * theirs.norm()


@interpreted
@pytest.mark.parametrize("card", ["sm_90", pytest.param("gfx942", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "highest"), (torch.float32, "high"), (torch.bfloat16, "highest")]
)
def test_settings_of_the_cards(card: str, dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch table's own blocks, more than one of each, and tf32 where it is allowed."""
    monkeypatch.setattr("msformer_fast.kernels.mix_ffn.target_of", lambda device: card)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        t, p = draw(1, 5, 9, 20, 70, dtype)
        results = []
        for backend in ("triton", "reference"):
            leaves = [v.clone().requires_grad_() for v in (t, *p)]
            y = ops.mix_ffn(*leaves, backend=backend)
            results.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    finally:
        torch.set_float32_matmul_precision(before)
    tolerance = 2e-5 if dtype == torch.float32 and precision == "highest" else 0.03
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@interpreted
def test_rows_too_long_for_offsets_of_32_bits() -> None:
    t, p = draw(1, 1, 2, 1, 16, torch.float32)
    row = t[:, :, :1].expand(1, 1, MIX_FFN_ROW // 16 + 1, 1)
    with pytest.raises(BackendError, match=r"at most 4194304 columns with 16 hidden channels, got 4194305"):
        ops.mix_ffn(row, *p, backend="triton")
