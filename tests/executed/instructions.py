"""Single instructions of the machine, in PTX of our own, against numpy. Run by ``test_machine.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.harness import ptx
from tests.harness.ptx.findings import DIVERGED, IN_FLIGHT, LANE_RACE, SHARED_OUTSIDE, UNWRITTEN, Finding

OUTPUTS = {"u32": np.uint32, "s32": np.int32, "f32": np.float32, "u64": np.uint64, "f64": np.float64}

MODULE = """.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
{params}
)
.reqntid 32
{{
    .reg .pred %q<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<16>;
    .reg .b32 %t;
    .reg .b64 %p<16>;
    .reg .{wide} %out;
    mov.u32 %t, %tid.x;
{load}
{body}
    ld.param.b64 %p{last}, [k_param_{last}];
    mad.wide.u32 %p{last}, %t, {size}, %p{last};
    st.global.{wide} [%p{last}], %out;
    ret;
}}
"""


def run(body: str, *inputs: np.ndarray, out: str = "u32") -> tuple[np.ndarray, list[Finding]]:
    """One warp. A thread finds its element of input i in %a<i>, and its number in %t; %out comes back."""
    output = np.zeros(32, OUTPUTS[out])
    arrays = [np.ascontiguousarray(x) for x in inputs]
    load = "\n".join(
        f".reg .b{8 * x.itemsize} %a{i};\n ld.param.b64 %p{i}, [k_param_{i}];\n"
        f"mad.wide.u32 %p{i}, %t, {x.itemsize}, %p{i};\n ld.global.b{8 * x.itemsize} %a{i}, [%p{i}];"
        for i, x in enumerate(arrays)
    )
    text = MODULE.format(
        params=",\n".join(f"\t.param .u64 k_param_{i}" for i in range(len(arrays) + 1)),
        load=load,
        body=body,
        last=len(arrays),
        size=output.itemsize,
        wide=f"b{8 * output.itemsize}",
    )
    memory = ptx.Memory()
    addresses = [memory.add(f"array {i}", x.ctypes.data, x.nbytes) for i, x in enumerate([*arrays, output])]
    params = np.array(addresses, np.uint64).tobytes()
    return output, ptx.run(ptx.program_of(text), (1, 1, 1), memory, params, shared=4096).findings


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-40, 1e10, -1e10, 1e38, np.inf, -np.inf, np.nan]
F = np.resize(np.array(SPECIAL, np.float32), 32)
RNG = np.random.default_rng(0)
G = RNG.standard_normal(32).astype(np.float32)
I = RNG.integers(-(2**31), 2**31, 32).astype(np.int32)  # noqa: E741
J = np.resize(np.array([3, -7, 1, -1, 100, 2**31 - 1, -(2**31), 12345], np.int32), 32)
T = np.arange(32)
U = I.view(np.uint32)


def to_int(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 0, np.clip(x.astype(np.float64), -(2**31), 2**31 - 1)).astype(np.int64)


def truncated(x: np.ndarray, bits: int) -> np.ndarray:
    return (x.view(np.uint32) >> bits << bits).view(np.float32)


def bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x.copy()).bfloat16().float().numpy()


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


CASES: list[tuple[str, tuple[np.ndarray, ...], str, Callable[[], Any]]] = [
    ("add.s32 %out, %a0, %a1;", (I, J), "s32", lambda: I + J),
    ("mul.hi.s32 %out, %a0, %a1;", (I, J), "s32", lambda: I.astype(np.int64) * J >> 32),
    ("mul.wide.s32 %out, %a0, %a1;", (I, J), "u64", lambda: (I.astype(np.int64) * J).view(np.uint64)),
    ("div.s32 %out, %a0, %a1;", (I, J), "s32", lambda: np.trunc(I.astype(np.float64) / J).astype(np.int64)),
    ("rem.s32 %out, %a0, %a1;", (I, J), "s32", lambda: np.fmod(I.astype(np.int64), J)),
    ("shr.s32 %out, %a0, 5;", (I,), "s32", lambda: I >> 5),
    ("shr.u32 %out, %a0, 40;", (I,), "u32", lambda: np.zeros(32)),
    ("add.s16x2 %out, %a0, %a1;", (I, J), "u32", lambda: bits(I.view(np.int16) + J.view(np.int16))),
    ("bfe.u32 %out, %a0, 5, 7;", (I,), "u32", lambda: U >> 5 & 127),
    ("bfe.s32 %out, %a0, 2, 1;", (I,), "s32", lambda: -(I >> 2 & 1)),
    ("bfi.b32 %out, %a0, %a1, 8, 4;", (I, J), "s32", lambda: (J & ~0xF00) | (I & 15) << 8),
    ("prmt.b32 %out, %a0, %a1, 0x5410U;", (I, J), "u32", lambda: (U & 0xFFFF) | bits(J) << 16),
    ("lop3.b32 %out, %a0, %a1, %a0, 0x3c;", (I, J), "s32", lambda: I ^ J),
    ("shf.l.wrap.b32 %out, %a0, %a0, 8;", (I,), "u32", lambda: U << 8 | U >> 24),
    ("cvt.rni.s32.f32 %out, %a0;", (F,), "s32", lambda: to_int(np.rint(F))),
    ("cvt.rzi.s32.f32 %out, %a0;", (F,), "s32", lambda: to_int(np.trunc(F))),
    ("cvt.rmi.f32.f32 %out, %a0;", (F,), "f32", lambda: np.floor(F)),
    ("cvt.rn.f32.s32 %out, %a0;", (I,), "f32", lambda: I.astype(np.float32)),
    ("cvt.rn.f16.f32 %h0, %a0; cvt.f32.f16 %out, %h0;", (F,), "f32", lambda: F.astype(np.float16)),
    ("cvt.rz.f16.f32 %h0, %a0; cvt.f32.f16 %out, %h0;", (G,), "f32", lambda: truncated(G, 13)),
    ("cvt.rn.bf16.f32 %h0, %a0; cvt.f32.bf16 %out, %h0;", (F,), "f32", lambda: bf16(F)),
    ("cvt.rn.bf16x2.f32 %out, %a0, %a1;", (G, -G), "u32", lambda: bits(bf16(G)) | bits(bf16(-G)) >> 16),
    ("cvt.rna.tf32.f32 %out, %a0;", (G,), "u32", lambda: bits(G) + 0x1000 & 0xFFFFE000),
    ("max.f32 %out, %a0, 0f3F800000;", (F,), "f32", lambda: np.fmax(F, 1)),
    ("max.NaN.f32 %out, %a0, 0f3F800000;", (F,), "f32", lambda: np.maximum(F, 1)),
    ("mul.ftz.f32 %out, %a0, 0f3F800000;", (F,), "f32", lambda: np.where(np.abs(F) < 1e-38, 0 * F, F)),
    ("setp.lt.f32 %q0, %a0, 0f3F800000; selp.b32 %out, 1, 0, %q0;", (F,), "u32", lambda: F < 1),
    ("setp.geu.f32 %q0, %a0, 0f3F800000; selp.b32 %out, 1, 0, %q0;", (F,), "u32", lambda: ~(F < 1)),
    ("setp.neu.f32 %q0, %a0, %a0; selp.b32 %out, 1, 0, %q0;", (F,), "u32", lambda: np.isnan(F)),
    ("fma.rn.f32 %out, %a0, %a1, %a0;", (G, G[::-1]), "f32", lambda: G.astype(np.float64) * G[::-1] + G),
    ("shfl.sync.bfly.b32 %out, %t, 5, 31, -1;", (), "u32", lambda: T ^ 5),
    ("shfl.sync.up.b32 %out, %t, 3, 0, -1;", (), "u32", lambda: np.where(T >= 3, T - 3, T)),
    ("shfl.sync.down.b32 %out|%q0, %t, 3, 31, -1;", (), "u32", lambda: np.where(T < 29, T + 3, T)),
    ("shfl.sync.idx.b32 %out, %t, 2, 0x1c1f, -1;", (), "u32", lambda: T // 4 * 4 + 2),
    ("redux.sync.min.s32 %out, %a0, -1;", (I,), "s32", lambda: np.full(32, I.min())),
    ("setp.lt.u32 %q0, %t, 5; vote.sync.ballot.b32 %out, %q0, -1;", (), "u32", lambda: np.full(32, 31)),
    ("mov.b32 {%h0, %h1}, %a0; mov.b32 %out, {%h1, %h0};", (I,), "u32", lambda: U << 16 | U >> 16),
    ("add.f64 %out, %a0, 0d3FF0000000000000;", (G.astype(np.float64),), "f64", lambda: G.astype(np.float64) + 1),
]


@np.errstate(all="ignore")
@pytest.mark.parametrize(("body", "inputs", "out", "wanted"), CASES, ids=[case[0].split(" ")[0] for case in CASES])
def test_an_instruction(body: str, inputs: tuple[np.ndarray, ...], out: str, wanted: Callable[[], Any]) -> None:
    got, findings = run(body, *inputs, out=out)
    assert not findings
    np.testing.assert_array_equal(got, np.asarray(wanted()).astype(got.dtype))


def test_lanes_that_diverge_meet_again() -> None:
    """A loop of as many turns as the lane's number, then a shuffle of the whole warp."""
    got, findings = run("""
        mov.b32 %r0, 0;
        mov.b32 %r1, 0;
    $loop:
        setp.ge.u32 %q0, %r1, %t;
        @%q0 bra $after;
        add.s32 %r1, %r1, 1;
        add.s32 %r0, %r0, %r1;
        bra.uni $loop;
    $after:
        shfl.sync.idx.b32 %out, %r0, 31, 31, -1;
    """)
    assert not findings
    assert (got == 31 * 32 // 2).all()


def test_an_indexed_branch() -> None:
    """Each lane to its own of three places, then a shuffle of the whole warp."""
    got, findings = run("""
        and.b32 %r1, %t, 3;
        min.u32 %r1, %r1, 2;
    $table: .branchtargets
        $zero,
        $one,
        $two;
        brx.idx %r1, $table;
    $zero:
        mov.b32 %r0, 10;
        bra.uni $after;
    $one:
        mov.b32 %r0, 11;
        bra.uni $after;
    $two:
        mov.b32 %r0, 12;
    $after:
        shfl.sync.idx.b32 %out, %r0, %t, 31, -1;
    """)
    assert not findings
    assert (got == 10 + np.minimum(T & 3, 2)).all()


def test_a_shuffle_inside_of_a_branch_is_found() -> None:
    body = """
        setp.lt.u32 %q0, %t, 7;
        mov.b32 %out, 0;
        @%q0 bra $skip;
        shfl.sync.bfly.b32 %out, %t, 1, 31, -1;
    $skip:
    """
    assert kinds(run(body)[1]) == {DIVERGED}


def test_an_exchange_within_a_warp_needs_a_sync() -> None:
    body = "shl.b32 %r0, %t, 2; xor.b32 %r1, %r0, 4; st.shared.b32 [%r0], %t; {} ld.shared.b32 %out, [%r1];"
    got, findings = run(body.format("bar.warp.sync -1;"))
    assert not findings
    assert (got == T ^ 1).all()
    assert kinds(run(body.format(""))[1]) == {LANE_RACE}


def test_shared_memory_that_nobody_wrote_is_nan_and_found() -> None:
    got, findings = run("shl.b32 %r0, %t, 2; ld.shared.b32 %out, [%r0];")
    assert kinds(findings) == {UNWRITTEN}
    assert (got == 2**32 - 1).all()
    assert kinds(run("mov.b32 %r0, 4096; ld.shared.b32 %out, [%r0];")[1]) == {SHARED_OUTSIDE}


def test_a_copy_that_was_not_waited_for() -> None:
    body = """
        shl.b32 %r0, %t, 2;
        cp.async.ca.shared.global [%r0], [%p0], 4;
        cp.async.commit_group;
        cp.async.wait_group {};
        ld.shared.b32 %out, [%r0];
    """
    got, findings = run(body.format(0), I)
    assert not findings
    assert (got.view(np.int32) == I).all()
    assert kinds(run(body.format(1), I)[1]) == {IN_FLIGHT}


def test_a_register_that_was_never_set_is_nan() -> None:
    got, findings = run("setp.lt.u32 %q0, %t, 5; @%q0 mov.b32 %out, 0f3F800000;", out="f32")
    assert not findings
    assert (got[:5] == 1).all() and np.isnan(got[5:]).all()


def test_what_it_does_not_know_it_says() -> None:
    with pytest.raises(ptx.Unsupported, match="PTX line .*frobnicate"):
        run("frobnicate.b32 %out, %t;")
