"""Small kernels as Triton compiles them, run by the machine, against PyTorch. Run by ``test_machine.py``."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from msformer_fast.kernels.blocks import add_dot
from msformer_fast.kernels.mix_ffn_kernels import normal_cdf
from tests.harness import ptx


@triton.jit
def add_kernel(p_x, p_y, p_out, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o, mask=o < n) + tl.load(p_y + o, mask=o < n), mask=o < n)


@triton.jit
def softmax_kernel(p_x, p_out, columns, BLOCK: tl.constexpr):
    row, o = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    b_x = tl.load(p_x + row * columns + o, mask=o < columns, other=-float("inf")).to(tl.float32)
    b_e = tl.exp(b_x - tl.max(b_x, 0))
    tl.store(p_out + row * columns + o, (b_e / tl.sum(b_e, 0)).to(p_out.dtype.element_ty), mask=o < columns)


@triton.jit
def cdf_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, normal_cdf(tl.load(p_x + o, mask=o < n)), mask=o < n)


@triton.jit
def product_kernel(
    p_a, p_b, p_c, M, N, K, am, ak, bk, bn,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """c = a b; FLIP: as the transpose of b' a'."""
    o_m, o_n = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    b_c = tl.zeros((BN, BM), tl.float32) if FLIP else tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        o_k = k + tl.arange(0, BK)
        m_a, m_b = (o_m < M)[:, None] & (o_k < K)[None, :], (o_k < K)[:, None] & (o_n < N)[None, :]
        b_a = tl.load(p_a + o_m[:, None] * am + o_k[None, :] * ak, mask=m_a, other=0.0)
        b_b = tl.load(p_b + o_k[:, None] * bk + o_n[None, :] * bn, mask=m_b, other=0.0)
        if FLIP:
            b_c = tl.dot(tl.trans(b_b), tl.trans(b_a), b_c, input_precision=PRECISION)
        else:
            b_c = tl.dot(b_a, b_b, b_c, input_precision=PRECISION)
    if FLIP:
        b_c = tl.trans(b_c)
    tl.store(p_c + o_m[:, None] * N + o_n[None, :], b_c, mask=(o_m < M)[:, None] & (o_n < N)[None, :])


@triton.jit
def reductions_kernel(p_x, p_rows, p_columns, p_scan, p_best, p_sum, M, N, BM: tl.constexpr, BN: tl.constexpr):
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    m = (o_m < M)[:, None] & (o_n < N)[None, :]
    b_x = tl.load(p_x + o_m[:, None] * N + o_n[None, :], mask=m, other=0.0)
    b_low = tl.where(m, b_x, -float("inf"))
    tl.store(p_rows + o_m, tl.sum(b_x, 1), mask=o_m < M)
    tl.store(p_columns + o_n, tl.max(b_low, 0), mask=o_n < N)
    tl.store(p_scan + o_m[:, None] * N + o_n[None, :], tl.cumsum(b_x, 1), mask=m)
    tl.store(p_best + o_m, tl.argmax(b_low, 1), mask=o_m < M)
    tl.atomic_add(p_sum, tl.sum(tl.sum(b_x, 1), 0))


@triton.jit
def chain_kernel(p_q, p_k, p_out, T, BLOCK: tl.constexpr, C: tl.constexpr):
    """Two products, the second of exponentials of the first, as attention has them."""
    o, o_c = tl.arange(0, BLOCK), tl.arange(0, C)
    b_q = tl.load(p_q + o[:, None] * C + o_c[None, :])
    b_out = tl.zeros((BLOCK, C), tl.float32)
    for start in range(0, T, BLOCK):
        m = start + o < T
        b_k = tl.load(p_k + (start + o)[:, None] * C + o_c[None, :], mask=m[:, None], other=0.0)
        b_p = tl.where(m[None, :], tl.exp(tl.dot(b_q, tl.trans(b_k)) * 0.1), 0.0)
        b_out = tl.dot(b_p.to(b_k.dtype), b_k, b_out)
    tl.store(p_out + o[:, None] * C + o_c[None, :], b_out)


@triton.jit
def long_product_kernel(p_a, p_b, p_c, K, M: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, PREC: tl.constexpr):
    """a b in pieces of BK, by the kernels' own ``add_dot``."""
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, BK)
    b_c = tl.zeros((M, N), tl.float32)
    for start in range(0, K, BK):
        b_a = tl.load(p_a + o_m[:, None] * K + (start + o_k)[None, :])
        b_b = tl.load(p_b + (start + o_k)[:, None] * N + o_n[None, :])
        b_c = add_dot(b_a, b_b, b_c, PREC, tl.float32)
    tl.store(p_c + o_m[:, None] * N + o_n[None, :], b_c)


def product_error(
    dtype: torch.dtype,
    precision: str = "ieee",
    warps: int = 4,
    stages: int = 1,
    flip: bool = False,
    transposed: tuple[bool, bool] = (False, False),
    sizes: tuple[int, int, int] = (77, 55, 99),
    blocks: tuple[int, int, int] = (64, 32, 32),
) -> float:
    """Relative error of a product of random matrices against float64."""
    M, N, K = sizes
    a = torch.randn(K, M, dtype=dtype).T if transposed[0] else torch.randn(M, K, dtype=dtype)
    b = torch.randn(N, K, dtype=dtype).T if transposed[1] else torch.randn(K, N, dtype=dtype)
    c = torch.full((M, N), float("nan"))
    grid = (triton.cdiv(M, blocks[0]), triton.cdiv(N, blocks[1]))
    constants = dict(zip(("BM", "BN", "BK"), blocks, strict=True), PRECISION=precision, FLIP=flip)
    product_kernel[grid](a, b, c, M, N, K, *a.stride(), *b.stride(), **constants, num_warps=warps, num_stages=stages)
    truth = a.double() @ b.double()
    return float((c - truth).norm() / truth.norm())


@pytest.mark.parametrize("warps", [1, 8])
def test_masks(warps: int) -> None:
    x, y = torch.randn(2, 1003)
    out = torch.full((1003,), float("nan"))
    add_kernel[(4,)](x, y, out, 1003, BLOCK=256, num_warps=warps)
    assert torch.equal(out, x + y)


def test_normal_cdf() -> None:
    """To one and a half units in the last place of 1, far out too; 0, 1 and NaN where they belong."""
    far = torch.tensor([-float("inf"), float("inf"), float("nan"), -3e38, 3e38, -1e4, 1e4, 0.0])
    x = torch.cat([torch.linspace(-16, 16, 4001), torch.randn(2000), far])
    out = torch.full_like(x, -1.0)
    cdf_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024, num_warps=4)
    torch.testing.assert_close(out.double(), torch.special.ndtr(x.double()), rtol=0, atol=1.5 * 2**-23, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_softmax(dtype: torch.dtype) -> None:
    x = torch.randn(5, 300).to(dtype)
    out = torch.empty_like(x)
    softmax_kernel[(5,)](x, out, 300, BLOCK=512, num_warps=4)
    truth = x.double().softmax(1)
    assert (out.double() - truth).norm() <= 2 * torch.finfo(dtype).eps * truth.norm()


@pytest.mark.parametrize(
    ("dtype", "precision", "low", "high"),
    [
        (torch.float32, "ieee", 0, 5e-7),
        (torch.float32, "tf32", 2e-4, 2e-3),
        (torch.float32, "tf32x3", 0, 1e-6),
        (torch.bfloat16, "ieee", 0, 1e-6),
        (torch.float16, "ieee", 0, 1e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("arch", [80, 90])
def test_a_product(arch: int, dtype: torch.dtype, precision: str, low: float, high: float) -> None:
    with ptx.collected(arch=arch, strict=True):
        assert low <= product_error(dtype, precision, stages=3, flip=True) < high


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("transposed", [(True, False), (False, True)])
@pytest.mark.parametrize(("warps", "blocks"), [(4, (64, 16, 64)), (8, (128, 64, 32))])
def test_a_product_by_wgmma(
    dtype: torch.dtype, transposed: tuple[bool, bool], warps: int, blocks: tuple[int, int, int]
) -> None:
    """Operands in shared memory, in every order and width of its rows."""
    used: list[bool] = []

    def look(text: str) -> str:
        used.append("wgmma.mma_async" in text)
        return text

    with ptx.collected(arch=90, edit=look) as findings:
        error = product_error(dtype, "tf32", warps, 2, False, transposed, (130, 70, 100), blocks)
    assert error < (2e-3 if dtype == torch.float32 else 1e-6)
    assert not findings
    assert used and all(used)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("warps", [4, 8])
def test_a_long_product_of_tf32_parts(arch: int, positive: bool, warps: int) -> None:
    """As exact as fused multiply-adds, though tensor cores cut all their sums, which shows where all terms add up."""
    M, N, K = 64, 64, 1600
    a, b = (torch.rand(size) if positive else torch.randn(size) for size in ((M, K), (K, N)))
    truth, errors = a.double() @ b.double(), {}
    for precision in ("ieee", "tf32x3", "tf32"):
        c = torch.full((M, N), float("nan"))
        with ptx.collected(arch=arch, strict=True):
            long_product_kernel[(1,)](a, b, c, K, M=M, N=N, BK=32, PREC=precision, num_warps=warps)
        errors[precision] = float((c - truth).norm() / truth.norm())
    assert errors["tf32x3"] < 4e-7
    assert errors["tf32x3"] < errors["ieee"] + 2.4e-7
    assert errors["tf32"] > 5e-6  # of another kind: the machine cuts operands and sums


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_product_of_a_product(arch: int, dtype: torch.dtype) -> None:
    q, k = torch.randn(64, 32).to(dtype), torch.randn(150, 32).to(dtype)
    out = torch.empty(64, 32)
    with ptx.collected(arch=arch, strict=True):
        chain_kernel[(1,)](q, k, out, 150, BLOCK=64, C=32, num_warps=4, num_stages=1)
    truth = (q.double() @ k.double().T * 0.1).exp() @ k.double()
    assert (out - truth).norm() / truth.norm() < 1e-2


@pytest.mark.parametrize("warps", [1, 4])
def test_reductions(warps: int) -> None:
    M, N = 13, 50
    x, scan, total = torch.randn(M, N), torch.empty(M, N), torch.zeros(1)
    rows, columns, best = torch.empty(M), torch.empty(N), torch.empty(M, dtype=torch.int32)
    reductions_kernel[(1,)](x, rows, columns, scan, best, total, M, N, BM=16, BN=64, num_warps=warps)
    torch.testing.assert_close(rows, x.sum(1))
    assert torch.equal(columns, x.max(0)[0])
    assert torch.equal(best.long(), x.argmax(1))
    torch.testing.assert_close(scan, x.cumsum(1))
    torch.testing.assert_close(total[0], x.sum())
