"""Faults planted in kernels or in their PTX, each of which the machine must find. Run by ``test_machine.py``."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl

from tests.executed.kernels import add_kernel, product_error
from tests.harness import ptx
from tests.harness.ptx.findings import (
    BLOCK_RACE,
    ENDLESS,
    GAP,
    IN_FLIGHT,
    MISALIGNED,
    OUTSIDE,
    RACE,
    UNWRITTEN,
    Finding,
)


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


@triton.jit
def hinted_kernel(p_x, p_out, start, BLOCK: tl.constexpr):
    o = tl.max_contiguous(tl.multiple_of(start + tl.arange(0, BLOCK), 4), 4)  # false where start is odd
    tl.store(p_out + tl.arange(0, BLOCK), tl.load(p_x + o))


def test_a_false_hint_of_alignment() -> None:
    x, out = torch.randn(260), torch.empty(128)
    hinted_kernel[(1,)](x, out, 4, BLOCK=128, num_warps=1)
    assert torch.equal(out, x[4:132])
    with pytest.raises(ptx.KernelFault, match=rf"hinted_kernel: {MISALIGNED} at faults.py:\d+, .*p_x \+ 12 bytes"):
        hinted_kernel[(1,)](x, out, 3, BLOCK=128, num_warps=1)


@triton.jit
def shifted_kernel(p_x, p_out, n, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o + 1, mask=o < n), mask=o < n)


def test_an_access_outside_of_its_tensor() -> None:
    x, out = torch.randn(100), torch.empty(100)
    with pytest.raises(ptx.KernelFault, match=rf"{OUTSIDE} at faults.py:\d+.*p_x \+ 400 bytes.*1 times"):
        shifted_kernel[(1,)](x, out, 100, BLOCK=128)
    with pytest.raises(ptx.KernelFault, match=rf"{OUTSIDE}.*p_out \+ 200 bytes"):
        shifted_kernel[(1,)](torch.randn(200), out[:50], 60, BLOCK=128)


def test_a_load_between_the_elements_of_a_view() -> None:
    x, out = torch.randn(100, 2), torch.empty(50)
    with pytest.raises(ptx.KernelFault, match=GAP):
        add_kernel[(1,)](x[:, 0], x[:, 0], out, 50, BLOCK=64)


@triton.jit
def far_kernel(p_x, p_out, stride, rows):
    o = tl.arange(0, 16)
    for row in range(rows):
        tl.store(p_out + row * 16 + o, tl.load(p_x + row.to(tl.int64) * stride + o))


def test_an_address_is_as_far_off_as_it_is() -> None:
    """4 GiB behind its tensor lies no other tensor."""
    x, out = torch.randn(1, 16), torch.empty(2, 16)
    with ptx.collected() as findings:
        far_kernel[(1,)](x, out, 2**30, 2)
    assert "p_x + 4294967296 bytes" in findings[0].where


@triton.jit
def crowded_kernel(p_x, p_out, n, ONE_SLOT: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + (0 if ONE_SLOT else tl.program_id(0)), tl.sum(tl.load(p_x + o, mask=o < n, other=0.0), 0))


def test_blocks_that_write_where_others_do() -> None:
    x, out = torch.randn(1000), torch.empty(8)
    crowded_kernel[(8,)](x, out, 1000, ONE_SLOT=False, BLOCK=128)
    with pytest.raises(ptx.KernelFault, match=rf"crowded_kernel: {BLOCK_RACE}.*p_out \+ 0 bytes"):
        crowded_kernel[(8,)](x, out, 1000, ONE_SLOT=True, BLOCK=128)


@triton.jit
def counted_kernel(p_out, p_counts, PLAIN: tl.constexpr):
    tl.store(p_out + tl.program_id(0), tl.atomic_add(p_counts, 1))
    if PLAIN and tl.program_id(0) == 3:
        tl.store(p_counts, 100)


def test_atomics_among_themselves_are_no_race() -> None:
    out, counts = torch.empty(8, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    counted_kernel[(8,)](out, counts, PLAIN=False)
    assert sorted(out.tolist()) == list(range(8))
    assert counts == 8
    with pytest.raises(ptx.KernelFault, match=f"{BLOCK_RACE}.*p_counts"):
        counted_kernel[(8,)](out, counts, PLAIN=True)


@triton.jit
def through_memory_kernel(p_x, p_out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o) * 2)
    if BARRIER:
        tl.debug_barrier()
    tl.store(p_x + o, tl.load(p_out + (BLOCK - 1 - o)))


def test_warps_that_meet_in_global_memory() -> None:
    x, out = torch.randn(256), torch.empty(256)
    wanted = 2 * x.flip(0)
    through_memory_kernel[(1,)](x, out, BLOCK=256, BARRIER=True, num_warps=4)
    assert torch.equal(x, wanted)
    with pytest.raises(ptx.KernelFault, match=RACE):
        through_memory_kernel[(1,)](x, out, BLOCK=256, BARRIER=False, num_warps=4)


@pytest.mark.parametrize("stages", [1, 3])
def test_a_barrier_that_is_missing(stages: int) -> None:
    """Every barrier of a product, taken out one by one. Each must show, in every order of warps."""
    barrier = re.compile(r"^\s*(bar\.sync|barrier\.sync\S*)\s+0;.*$", re.M)
    seen: list[int] = []

    def count(text: str) -> str:
        seen.append(len(barrier.findall(text)))
        return text

    with ptx.collected(arch=80, edit=count) as findings:
        product_error(torch.float16, stages=stages)
    assert not findings
    assert seen[-1]
    for which in range(seen[-1]):

        def without(text: str, which: int = which) -> str:
            found = list(barrier.finditer(text))[which]
            return text[: found.start()] + text[found.end() :]

        with ptx.collected(arch=80, edit=without, seed=which) as findings:
            product_error(torch.float16, stages=stages)
        assert kinds(findings) & {RACE, IN_FLIGHT}, f"barrier {which} of {seen[-1]}"


def test_a_store_to_shared_memory_that_is_missing() -> None:
    def without(text: str) -> str:
        found = re.search(r"^\s*st\.shared.*$", text, re.M)
        return text[: found.start()] + text[found.end() :]

    with ptx.collected(arch=80, edit=without) as findings:
        product_error(torch.float32)
    assert UNWRITTEN in kinds(findings)


def test_an_endless_loop() -> None:
    with ptx.collected(max_steps=1000) as findings:
        product_error(torch.float32)
    assert ENDLESS in kinds(findings)


@triton.jit
def atomic_sum_kernel(p_x, p_out, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(p_out, tl.sum(tl.load(p_x + o), 0))


def test_a_result_that_depends_on_the_order() -> None:
    # Two huge sums cancel; how many of the thirty ones vanish between them depends on who adds first.
    x, out = torch.zeros(32, 128), torch.zeros(1)
    x[:, 0] = torch.cat((torch.ones(15), torch.tensor([2.0**25]), torch.ones(15), torch.tensor([-(2.0**25)])))
    with pytest.raises(ptx.KernelFault, match="depend on the order"), ptx.collected(repeats=4, strict=True):
        atomic_sum_kernel[(32,)](x, out, BLOCK=128)
