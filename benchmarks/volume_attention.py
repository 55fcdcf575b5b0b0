"""Window attention of volumes, counted: launches, bytes and the least times, beside PyTorch's fused attention.

    python -m msformer_fast.benchmarks.volume_attention [--dtype float32] [--card "RTX 4090"]

The rival does what MONAI's Swin blocks do with ``use_flash_attention``: the volume is padded, rolled and cut into
windows, then projected; the table's bias and the mask of the seams become one tensor (windows, heads, n, n), n tokens a
window, that ``scaled_dot_product_attention`` adds; the result is put together, rolled back and cropped. The projections
before and after, and the mask, made once for several layers, are left out.

Our bytes are those of recorded launches, the rival's those of the arguments and results of PyTorch's operators, the
fused attention for CUDA among them as one (``benchmarks/aten_traffic``). Times: see ``benchmarks/predict.py``. Nothing
is computed, no GPU is needed, and none has measured any of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast import ops
from msformer_fast.benchmarks.aten_traffic import AtenTraffic
from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.case import Case, Kernels, Sizes
from msformer_fast.benchmarks.op_bench import Inputs, OpBench, Random
from msformer_fast.benchmarks.options import DTYPES
from msformer_fast.benchmarks.predict import predict
from msformer_fast.floors import cross_scale_attention as floors
from msformer_fast.windows import windows_of

#: What MONAI's mask adds to the scores of tokens from different sides of a seam.
SEAM = -100.0
MAP, WINDOWS = "(z i) (y j) (x k) c", "(z y x) (i j k) c"


class Volume(NamedTuple):
    """A shifted layer: voxels of a side, channels, heads, and tokens of a window's side; see :func:`shift_of`."""

    side: int
    channels: int
    heads: int
    window: int


#: The stages of Swin UNETR at 96 voxels a side, by its feature size.
STAGES = {size: [Volume(48 >> i, size << i, 3 << i, min(7, 48 >> i)) for i in range(4)] for size in (24, 48)}
#: Three heads of these channels, in these windows; those of the first stages are in ``STAGES``.
OTHERS = [Volume(48, 3 * d, 3, window) for window in (7, 8, 4) for d in (8, 16, 32)]
VOLUMES = list(dict.fromkeys([*STAGES[24], *STAGES[48], *OTHERS]))


def shift_of(s: Sizes) -> int:
    """Half a window; none where the volume is one, as in MONAI."""
    return s["window"] // 2 if s["side"] > s["window"] else 0


def draw(s: Sizes, rand: Random) -> Inputs:
    """A volume, its projection to queries, keys and values, and a table of relative positions."""
    side, channels = s["side"], s["channels"]
    return {
        "x": rand(1, side, side, side, channels),
        "weight": rand(3 * channels, channels, scale=channels**-0.5),
        "bias": rand(3 * channels),
        "table": rand((2 * s["window"] - 1) ** 3, s["heads"]),
    }


def call(inputs: Inputs, s: Sizes, *, backend: str) -> tuple[Tensor, ...]:
    """The drop-in's way: what lies outside the volume is the projection of zeros, its bias."""
    qkv = F.linear(inputs["x"], inputs["weight"], inputs["bias"])
    _, pad_k, pad_v = rearrange(inputs["bias"], "(three h d) -> three h d", three=3, h=s["heads"])
    out = ops.cross_scale_attention(
        rearrange(qkv, "b z y x (three h d) -> b z y x three h d", three=3, h=s["heads"]),
        None,
        None,
        s["window"],
        shift=shift_of(s),
        bias=inputs["table"],
        outside="pad",
        pad_k=pad_k,
        pad_v=pad_v,
        seam=SEAM,
        backend=backend,
    )
    return (out.flatten(-2),)


def sdpa(inputs: Inputs, s: Sizes) -> tuple[Tensor, ...]:
    """MONAI's way: what lies outside the volume is padded and projected."""
    x, table = inputs["x"], inputs["table"]
    qkv = F.linear(cut(x, s), inputs["weight"], inputs["bias"])
    seen = mask(s).to(x) if shift_of(s) else None
    rows = positions(s["window"]).to(x.device)
    return (together(attended(qkv, table, rows, seen, s, F.scaled_dot_product_attention), s),)


def cut(x: Tensor, s: Sizes) -> Tensor:
    """Windows (windows, n, C) of one volume (1, side, side, side, C), padded to whole windows and rolled."""
    side, window, shift = s["side"], s["window"], shift_of(s)
    x = F.pad(x, (0, 0, *(0, -side % window) * 3))  # a copy where nothing is padded too
    if shift:
        x = torch.roll(x, (-shift,) * 3, (1, 2, 3))
    return rearrange(x, f"1 {MAP} -> {WINDOWS}", i=window, j=window, k=window)


def attended(
    qkv: Tensor, table: Tensor, rows: Tensor, seen: Tensor | None, s: Sizes, attention: Callable[..., Tensor]
) -> Tensor:
    """Results (windows, n, C) of projected windows (windows, n, 3 C).

    Args:
        rows: (n, n), of the table.
        seen: (windows, n, n), what is added to scores besides.
        attention: takes q, k, v (windows, heads, n, d), what is added to scores (windows, heads, n, n), and a scale.
    """
    q, k, v = rearrange(qkv, "w n (three h d) -> three w h n d", three=3, h=s["heads"]).unbind()
    windows, heads, n, d = q.shape

    added = table[rows.flatten()].reshape(n, n, heads).permute(2, 0, 1).contiguous()
    added = added.expand(windows, heads, n, n) if seen is None else added + seen[:, None]
    return rearrange(attention(q, k, v, added, scale=d**-0.5), "w h n d -> w n (h d)")


def together(windows: Tensor, s: Sizes) -> Tensor:
    """The volume of windows (windows, n, C): rolled back and cropped."""
    side, window, shift = s["side"], s["window"], shift_of(s)
    count = -(-side // window)
    sides = dict.fromkeys("zyx", count) | dict.fromkeys("ijk", window)
    out = rearrange(windows, f"{WINDOWS} -> 1 {MAP}", **sides)
    if shift:
        out = torch.roll(out, (shift,) * 3, (1, 2, 3))
    return out[:, :side, :side, :side].contiguous()


def positions(window: int) -> Tensor:
    """The table's row for every query and key (n, n)."""
    place = torch.cartesian_prod(*[torch.arange(window)] * 3)  # [n, 3]
    z, y, x = (place[:, None] - place + window - 1).unbind(-1)
    return (z * (2 * window - 1) + y) * (2 * window - 1) + x


def mask(s: Sizes) -> Tensor:
    """What is added to the scores of each window's queries and keys (windows, n, n)."""
    window, padded = s["window"], -(-s["side"] // s["window"]) * s["window"]
    past = torch.arange(padded) >= padded - shift_of(s)
    place = 4 * past[:, None, None] + 2 * past[:, None] + past.long()  # [padded, padded, padded]
    place = rearrange(place[..., None], f"{MAP} -> {WINDOWS}", i=window, j=window, k=window)
    return SEAM * (place != place.mT)


def floor(s: Sizes, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int]]:
    """Of the attention: the projections are left out."""
    size = (s["side"],) * 3
    windows = windows_of("volume_attention", size, size, s["window"], 0, shift_of(s), "pad")
    of_call = 1, s["heads"], s["channels"] // s["heads"], windows
    return floors.bytes_moved(*of_call, dtype, bias=windows.table * s["heads"] * dtype.itemsize), floors.flops(*of_call)


class _Operators(OpBench):
    """The rival's operators in place of kernels."""

    def kernels(self, case: Case, part: str, multiprocessors: int, target: str | None) -> Kernels:
        s, dtype = dict(case.sizes), case.torch_dtype
        side, channels = s["side"], s["channels"]
        ahead, back = AtenTraffic(), AtenTraffic()
        with FakeTensorMode(), torch.set_grad_enabled(part != "forward"):
            x = torch.empty(1, side, side, side, channels, dtype=dtype, requires_grad=True)
            table = torch.empty((2 * s["window"] - 1) ** 3, s["heads"], dtype=dtype, requires_grad=True)
            rows, seen = positions(s["window"]), mask(s).to(dtype) if shift_of(s) else None
            with ahead:
                windows = cut(x, s)
            qkv = windows.new_empty(*windows.shape[:-1], 3 * channels, requires_grad=True)
            with ahead:
                out = together(attended(qkv, table, rows, seen, s, fused), s)

            if part != "forward":
                with back:
                    d_qkv, _ = torch.autograd.grad(out, (qkv, table), torch.empty_like(out))
                    torch.autograd.grad(windows, x, d_qkv[..., :channels])
        counted = ahead if part == "forward" else back
        return {"operators": (counted.launches, counted.bytes, 0)}


def fused(q: Tensor, k: Tensor, v: Tensor, added: Tensor, scale: float) -> Tensor:
    """What ``scaled_dot_product_attention`` runs on a GPU where something is added to scores."""
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = attention(q, k, v, added, torch.is_grad_enabled(), scale=scale)[0]
    return out


_WHAT: dict[str, Any] = dict(draw=draw, call=call, floor_of=floor, rivals={"sdpa": sdpa}, plain="sdpa", compiled=False)
BENCH: Any = OpBench("cross_scale_attention", "window attention of a volume behind its projection", **_WHAT)
OPERATORS: Any = _Operators("cross_scale_attention", "the same by PyTorch's operators", **_WHAT)


COLUMNS = ("volume, channels, window", "launches", "MB", "MB at least", "ms", "SDPA: launches", "MB", "ms")


def rows(part: str, dtype: str, card: str) -> dict[str, list[float]]:
    """Figures of every volume by the table's first cell, of ``"forward"`` (the rival without gradients) or
    ``"backward"``, in the order of :data:`COLUMNS`."""
    found: dict[str, list[float]] = {}
    for volume in VOLUMES:
        case = Case.of("cross_scale_attention", volume._asdict(), dtype)
        ours, rival = (p for p in predict([(BENCH, case), (OPERATORS, case)], [card]) if p.part == part)
        name = f"{volume.side}^3, {volume.channels} in {volume.heads} heads, {volume.window}^3"
        figures = [ours.launches, ours.moved_bytes / 1e6, ours.floor_bytes / 1e6, 1e3 * ours.seconds]
        found[name] = [*figures, rival.launches, rival.moved_bytes / 1e6, 1e3 * rival.seconds]
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the volume and the weights")
    parser.add_argument("--card", choices=CARDS, default="H100 SXM", help="of launch tables and data sheet")
    arguments = parser.parse_args()
    for part in ("forward", "backward"):
        print(f"\n{part}, {arguments.dtype}, {arguments.card}: counted, nothing is measured\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for name, figures in rows(part, arguments.dtype, arguments.card).items():
            print(f"| {name} | {' | '.join(map(shown, figures))} |", flush=True)


def shown(figure: float) -> str:
    """Three digits; all of a count."""
    return f"{figure:.0f}" if isinstance(figure, int) or figure >= 100 else f"{figure:#.3g}"


if __name__ == "__main__":
    main()
