"""Windowed cross-scale attention: brute force from the definition alone, packed maps, refusals."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from msformer_fast import InputError, ops
from msformer_fast.windows import ratio_of, windows_of
from tests.harness.error_rule import Error

pytestmark = pytest.mark.usefixtures("strict_kernels")

BACKENDS = ("reference", "torch", "triton", "native")


def dtype_of(backend: str) -> torch.dtype:
    return torch.float32 if backend == "native" else torch.float64


def as_taken(given: dict[str, Any], backend: str) -> dict[str, Any]:
    """Tensors in a dtype that the backend takes."""
    dtype = dtype_of(backend)
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in given.items()}


def _rolled(size: int, padded: int, shift: int, halo: int, outside: str, order: str) -> list[tuple[int | None, bool]]:
    """Every row of a rolled axis and of its halo: the map's row that stands there, and whether it is past the seam."""
    rows: list[int | None] = list(range(size))
    rest: list[int | None] = [None] * (padded - size)
    if order == "pad_roll":
        rows = rows + rest
        rows = rows[shift:] + rows[:shift]
    else:
        turn = shift % size
        rows = rows[turn:] + rows[:turn] + rest
    seam = padded - shift
    if order == "roll_pad" and outside == "ignore":
        seam = size - shift % size
    sides = [shift > 0 and position >= seam for position in range(padded)]
    nothing: list[int | None] = [None] * halo
    return list(zip(nothing + rows + nothing, [sides[0]] * halo + sides + [sides[-1]] * halo, strict=True))


def brute_force(q: np.ndarray, k: np.ndarray, v: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """The definition, one query after the other."""
    (window, halo, shift), outside, order = (
        (options[n] for n in ("window", "halo", "shift")),
        options["outside"],
        options["order"],
    )
    out = np.zeros_like(q)
    axes, offsets = [], []
    for size_q, size_k, w, h, s in zip(q.shape[1:-2], k.shape[1:-2], window, halo, shift, strict=True):
        p, r = ratio_of(size_q, size_k)
        count, core = math.ceil(size_q / w), w * p // r
        rows_q = _rolled(size_q, count * w, s, 0, outside, order)
        rows_k = _rolled(size_k, count * core, s * p // r, h, outside, order)
        axes.append((rows_q, rows_k, w, core, h, p, r))
        offsets.append([p * a - r * b for a in range(w) for b in range(-h, core + h)])
    for places in itertools.product(*(enumerate(rows_q) for rows_q, *_ in axes)):
        pixel = tuple(row for _, (row, _) in places)
        if None in pixel:
            continue
        scores, values = [], []
        for near in itertools.product(*(range(core + 2 * h) for _, _, _, core, h, _, _ in axes)):
            number_q, number_k, entry, found, apart = 0, 0, 0, [], False
            for (u, (_, past)), n, (_, keys, w, core, h, p, r), offset in zip(places, near, axes, offsets, strict=True):
                row, past_row = keys[u // w * core + n]
                found.append(row)
                apart = apart or past != past_row
                number_q, number_k = number_q * w + u % w, number_k * (core + 2 * h) + n
                at = p * (u % w) - r * (n - h) - min(offset)
                entry = entry * (max(offset) - min(offset) + 1) + at
            exists = None not in found
            if (outside == "ignore" and not exists) or (apart and options["seam"] == -math.inf):
                continue
            zero = np.zeros_like(q.reshape(q.shape[0], -1, *q.shape[-2:])[:, 0])
            key, value = (k[(slice(None), *found)], v[(slice(None), *found)]) if exists else (zero, zero)
            if not exists and options["pad_k"] is not None:
                key, value = zero + options["pad_k"], zero + options["pad_v"]
            score = options["scale"] * (q[(slice(None), *pixel)] * key).sum(-1) + (options["seam"] if apart else 0.0)
            bias = options["bias"]
            if bias is not None:
                score = score + (bias[:, number_q, number_k] if bias.ndim == 3 else bias[entry])
            scores.append(score)
            values.append(value)
        if scores:
            weights = np.exp(np.stack(scores) - np.max(scores, 0))
            out[(slice(None), *pixel)] = ((weights / weights.sum(0))[..., None] * np.stack(values)).sum(0)
    return out


def _draw(rng: random.Random, axes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Maps of so many axes and options, every one of them drawn."""
    sizes_q, sizes_k, window, halo, shift = [], [], [], [], []
    for _ in range(axes):
        p, r = rng.choice([(1, 1), (1, 1), (1, 2), (1, 2), (2, 1), (1, 4), (4, 1), (2, 3)])
        w = r * rng.choice([1, 2, 3] if r == 1 else [1, 2] if r < 4 else [1])
        if (p, r) == (2, 3):
            sizes_q.append(r * rng.randint(1, 3))
            sizes_k.append(sizes_q[-1] * p // r)
        elif p == 1:
            sizes_q.append(rng.randint(3 if r < 4 else 5, 9 if axes < 3 else 6))
            sizes_k.append(-(-sizes_q[-1] // r))
        else:
            sizes_k.append(rng.randint(5, (9 if p == 2 else 13) if axes < 3 else 7))
            sizes_q.append(-(-sizes_k[-1] // p))
        p, r = ratio_of(sizes_q[-1], sizes_k[-1])
        w = -(-w // r) * r
        window.append(w)
        shift.append(rng.randrange(0, w, r))
        halo.append(rng.choice([0, 0, 1, 2]))
    outside, order = rng.choice(["ignore", "pad"]), rng.choice(["pad_roll", "roll_pad"])
    heads, d = rng.choice([1, 2]), rng.choice([1, 3, 8, 10])

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    batch = rng.choice([1, 2])
    maps = {"q": new(batch, *sizes_q, heads, d)} | {name: new(batch, *sizes_k, heads, d) for name in "kv"}
    windows = windows_of("", sizes_q, sizes_k, window, halo, shift, outside, order)
    shapes = {"none": None, "table": (windows.table, heads), "dense": (heads, windows.queries, windows.keys)}
    bias = shapes[rng.choice(["none", "table", "dense"])]
    pads = outside == "pad" and rng.random() < 0.7
    return maps, {
        **{"window": window, "halo": halo, "shift": shift, "outside": outside, "order": order},
        "scale": rng.choice([0.3, 1.0, 1.7]),
        "seam": rng.choice([-math.inf, -math.inf, -2.0]),
        "bias": None if bias is None else new(*bias),
        "pad_k": new(heads, d) if pads else None,
        "pad_v": new(heads, d) if pads else None,
    }


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_brute_force_agrees_for_every_option(axes: int, number: int) -> None:
    rng = random.Random(torch.initial_seed() + 100 * axes + number)
    torch.manual_seed(rng.randrange(2**31))
    maps, options = _draw(rng, axes)
    plain = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in options.items()}
    truth = torch.from_numpy(brute_force(*(value.numpy() for value in maps.values()), plain))
    for backend in BACKENDS:
        out = ops.cross_scale_attention(**as_taken(maps | options, backend), backend=backend)
        assert Error.of(out.double(), truth).row < (1e-5 if backend == "native" else 1e-12), (backend, options)


@pytest.mark.parametrize("backend", ["torch", "native", "triton"])
def test_windows_of_a_thousand_tokens(backend: str) -> None:
    """10 x 10 x 10, of which a shift makes two, each with tokens of both sides of the seam."""
    table = torch.randn(19**3, 1, dtype=torch.float64)
    maps = {name: torch.randn(1, 13, 10, 10, 1, 8, dtype=torch.float64) for name in "qkv"}
    options: dict[str, Any] = {"window": (10,) * 3, "shift": (4, 0, 0), "bias": table, "outside": "pad"}
    options |= {"scale": 0.4, "seam": -2.0}
    out = ops.cross_scale_attention(**as_taken(maps | options, backend), backend=backend)

    # One query is 2,000 terms; the definition of a few of them says enough of so large a window.
    row = _rolled(13, 20, 4, 0, "pad", "pad_roll")
    for u in (0, 7, 8, 12, 17):
        depth, past = row[u]
        if depth is None:
            continue
        scores, values = [], []
        for near in range(u // 10 * 10, u // 10 * 10 + 10):
            found, past_key = row[near]
            for y, x in itertools.product(range(10), repeat=2):
                key, value = (
                    (torch.zeros(8).double(),) * 2 if found is None else (maps[n][0, found, y, x, 0] for n in "kv")
                )
                entry = ((u % 10 - near % 10 + 9) * 19 + (3 - y + 9)) * 19 + (5 - x + 9)
                score = 0.4 * (maps["q"][0, depth, 3, 5, 0] @ key) + table[entry, 0] - 2.0 * (past != past_key)
                scores.append(score)
                values.append(value)
        truth = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
        error = Error.of(out[:, depth, 3, 5].double(), truth[None, None])
        assert error.row < (1e-5 if backend == "native" else 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_maps_are_the_same_and_their_gradients_come_packed(backend: str) -> None:
    qkv = torch.randn(2, 7, 6, 3, 2, 5, dtype=dtype_of(backend), requires_grad=True)
    options: dict[str, Any] = {"window": (4, 3), "shift": 1, "backend": backend}
    weights = torch.randn(2, 7, 6, 2, 5, dtype=dtype_of(backend))
    separate = [part.detach().clone().requires_grad_() for part in qkv.unbind(3)]
    truth = ops.cross_scale_attention(*separate, **options)
    wanted = torch.stack(torch.autograd.grad(truth, separate, weights), 3)
    out = ops.cross_scale_attention(qkv, None, None, **options)
    torch.testing.assert_close(out, truth)
    torch.testing.assert_close(torch.autograd.grad(out, qkv, weights)[0], wanted)
    q, kv = separate[0], qkv[:, :, :, 1:].detach().requires_grad_()
    out = ops.cross_scale_attention(q, kv, None, **options)
    torch.testing.assert_close(out, truth)
    for got, want in zip(
        torch.autograd.grad(out, [q, kv], weights), (wanted[:, :, :, 0], wanted[:, :, :, 1:]), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_without_any_key_gives_zeros_and_no_gradient(backend: str) -> None:
    q = torch.randn(1, 5, 8, 1, 4, dtype=dtype_of(backend), requires_grad=True)
    k, v = (torch.randn(1, 3, 4, 1, 4, dtype=dtype_of(backend), requires_grad=True) for _ in range(2))
    bias = torch.randn(1, 16, 4, dtype=dtype_of(backend), requires_grad=True)
    out = ops.cross_scale_attention(q, k, v, 4, shift=(2, 0), bias=bias, order="roll_pad", backend=backend)
    gradients = torch.autograd.grad(out, [q, k, v, bias], torch.randn_like(out))
    lonely = (out == 0).all(-1)
    assert lonely.any() and not lonely.all()
    assert (gradients[0][lonely] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_shifted_windows_of_equal_sizes_are_swins() -> None:
    """Roll, partition, masked attention with Swin's table and index, reverse, roll back."""
    size, w, shift, heads, d = (8, 12), 4, 2, 3, 5
    q, k, v = (torch.randn(2, *size, heads, d, dtype=torch.float64) for _ in range(3))
    table = torch.randn((2 * w - 1) ** 2, heads, dtype=torch.float64)

    def partition(x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, w)).unflatten(1, (-1, w))
        return x.transpose(2, 3).reshape(-1, w * w, *x.shape[5:])

    grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    relative = (grid[:, :, None] - grid[:, None, :]) + w - 1
    bias = table[relative[0] * (2 * w - 1) + relative[1]].permute(2, 0, 1)
    regions = torch.zeros(1, *size, 1)
    for number, (i, j) in enumerate((i, j) for i in range(3) for j in range(3)):
        spans = [slice(0, -w), slice(-w, -shift), slice(-shift, None)]
        regions[:, spans[i], spans[j]] = number
    region = partition(regions)[..., 0]
    hidden = (region[:, None, :] != region[:, :, None]).repeat(2, 1, 1)[:, None]
    q_w, k_w, v_w = (partition(torch.roll(t, (-shift, -shift), (1, 2))).transpose(1, 2) for t in (q, k, v))
    p = torch.softmax((q_w @ k_w.mT * d**-0.5 + bias).masked_fill(hidden, -math.inf), -1)
    merged = (p @ v_w).transpose(1, 2).reshape(2, size[0] // w, size[1] // w, w, w, heads, d)
    truth = torch.roll(merged.transpose(2, 3).reshape(q.shape), (shift, shift), (1, 2))
    for backend in BACKENDS:
        given = as_taken({"q": q, "k": k, "v": v, "bias": table}, backend)
        out = ops.cross_scale_attention(**given, window=w, shift=shift, backend=backend)
        torch.testing.assert_close(out, truth.to(out.dtype))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 7}, r"window 7 covers 3.5 of 129 keys for 257 queries \(height\).*nearest that fit: 6 and 8"),
        ({"window": 1}, r"window 1 covers 0.5 .*nearest that fit: 2"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": (8, 8, 8)}, r"window must be an integer or a pair"),
        ({"window": 8.0}, r"window must be an integer or a pair"),
        ({"shift": 3}, r"shift must be at least 0, less than the window 8 and move whole keys, 1 for 2 .*got 3"),
        ({"shift": 8}, "shift must be .* got 8"),
        ({"halo": -1}, r"halo must be at least 0, got -1 \(height\)"),
        ({"outside": "zeros"}, "outside must be one of ignore, pad; got 'zeros'"),
        ({"order": "roll"}, "order must be one of pad_roll, roll_pad; got 'roll'"),
        ({"dropout": 0.1}, "dropout must be 0, got 0.1"),
        ({"seam": math.inf}, "seam must be a number below infinity"),
        ({"seam": math.nan}, "seam must be a number below infinity"),
        ({"bias": torch.zeros(7, 2)}, "a bias table must have 196 entries .*got .7, 2."),
        ({"bias": torch.zeros(2, 64, 17)}, r"bias must have shape \(heads, 64, 16\)"),
        ({"pad_k": torch.zeros(2, 4)}, 'pad_k and pad_v need outside="pad"'),
        ({"pad_k": torch.zeros(2, 5), "outside": "pad"}, r"pad_k must have shape \(heads, d\) with d = 4"),
        ({"v": torch.zeros(1, 129, 8, 2, 4)}, r"v must have shape \(B, Hk, Wk, heads, d\) with Wk = 9"),
        ({"k": None}, "k is None and v is not"),
        ({"k": None, "v": None}, r"q must have shape \(B, \[\[D,\] H,\] W, 3, heads, d\), got \(1, 257, 17, 2, 4\)"),
        ({"q": torch.zeros(3, 2, 4)}, r"q must have shape \(B, \[\[D,\] H,\] W, heads, d\), got \(3, 2, 4\)"),
        ({"q": torch.zeros(1, 4, 4, 4, 2, 4)}, r"k must have shape \(B, Dk, Hk, Wk, heads, d\)"),
        ({"backend": "cuda"}, "backend must be None or one of"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Any], message: str) -> None:
    k = torch.zeros(1, 129, 9, 2, 4)
    given = {"q": torch.zeros(1, 257, 17, 2, 4), "k": k, "v": k, "window": 8} | changed
    with pytest.raises(InputError, match=message):
        ops.cross_scale_attention(**given)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("halo", [0, 3])
def test_cpu_kernels_in_blocks_of_queries_and_parts(count: int, halo: int) -> None:
    """Windows whose scores leave the cache, and several windows' gradients of one key, on any number of threads."""
    q = torch.randn(2, 40, 33, 1, 7, requires_grad=True)
    k, v = (torch.randn(2, 20, 17, 1, 7, requires_grad=True) for _ in range(2))
    bias = torch.randn(windows_of("", (40, 33), (20, 17), (18, 30), halo).table, 1, requires_grad=True)
    given = q, k, v, bias
    results = []
    torch.set_num_threads(count)
    for backend in ("native", "reference"):
        leaves = given if backend == "native" else [value.double() for value in given]
        out = ops.cross_scale_attention(*leaves[:3], (18, 30), halo, bias=leaves[3], backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for ours, truth in zip(*results, strict=True):
        assert Error.of(ours.double(), truth.double()).whole < 1e-5


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("halo", [0, 1])
def test_cpu_kernels_of_volumes_in_parts(count: int, halo: int) -> None:
    """Parts of heads and heads in parts, more than 32 windows of one, and several windows' gradients of one key."""
    q, k, v = (torch.randn(2, 13, 9, 8, 2, 7, requires_grad=True) for _ in range(3))
    windows = windows_of("", (13, 9, 8), (13, 9, 8), (3, 3, 2), halo)
    bias = torch.randn(windows.table, 2, requires_grad=True)
    given = q, k, v, bias, *(torch.randn(2, 7, requires_grad=True) for _ in range(2))
    results = []
    torch.set_num_threads(count)
    for backend in ("native", "native", "torch"):
        leaves = given if backend == "native" else [value.double() for value in given]
        options: dict[str, Any] = {"bias": leaves[3], "pad_k": leaves[4], "pad_v": leaves[5], "seam": -2.0}
        options |= {"outside": "pad", "shift": (1, 1, 1), "backend": backend}
        out = ops.cross_scale_attention(*leaves[:3], (3, 3, 2), halo, **options)
        results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for ours, again, truth in zip(*results, strict=True):
        assert torch.equal(ours, again)
        assert Error.of(ours.double(), truth.double()).whole < 1e-5
