"""What a whole training step moves, op by op, beside the least that it must and beside plain PyTorch.

    TRITON_INTERPRET=1 python -m msformer_fast.benchmarks.ledger [--side 257] [--channels 100] [--multiprocessors 132]

Bytes of the kernels come from formulas (``benchmarks/traffic``) that tests hold to what Triton's interpreter counts at
small sizes; a kernel's reads count each address once a launch, as a perfect cache would. Bytes of PyTorch's operators
are those of their arguments and results (``benchmarks/aten_traffic``). Times are predictions from data sheets: of each
op the slower of its bytes over the bandwidth and its useful operations over the throughput. No GPU has measured them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch

from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.traffic import (
    Kernels,
    efficient_attention,
    has_launch_tables,
    mix_ffn,
    patch_embedding,
    score_map,
    stability_loss,
)
from msformer_fast.floors import efficient_attention as attention_floor
from msformer_fast.floors import guided_score_map as head_floor
from msformer_fast.floors import mix_ffn as ffn_floor
from msformer_fast.floors import stability_loss as stability_floor

DTYPE, TARGET, PATCH = torch.float32, "sm_90", 32


@dataclass
class Row:
    """One op, forward or backward, as often as a step runs it.

    Attributes:
        kernels: of one run, see :data:`benchmarks.traffic.Kernels`.
        floor: bytes that one run must move.
        flops: useful operations of the products of one run.
    """

    name: str
    times: int
    kernels: Kernels
    floor: int
    flops: int = 0
    moved: int = field(init=False)

    def __post_init__(self) -> None:
        self.moved = sum(loaded + stored for _, loaded, stored in self.kernels.values())

    @property
    def launches(self) -> int:
        return self.times * sum(launches for launches, _, _ in self.kernels.values())

    def seconds(self, bandwidth: float, throughput: float) -> float:
        """At least, on a card of that many bytes and operations a second."""
        return self.times * max(self.moved / bandwidth, self.flops / throughput)


def rows_of(
    side: int,
    channels: int,
    *,
    multiprocessors: int,
    depth: int = 2,
    patch: int = PATCH,
    strips: bool = False,
    target: str = TARGET,
) -> list[Row]:
    """Every op of a step on one square image, with C channels and as many clusters.

    Args:
        multiprocessors, target: of the card.
        strips: the Mix-FFN of ``memory="lean"``, on a card whose last cache keeps a strip of the hidden activations
            and of their gradient.

    Returns:
        The rows; without kernels, the floors alone, where no launch table can be read.
    """
    rows = []
    for branch, size in (("fine", side), ("coarse", (side + 1) // 2)):
        rows += _block(branch, size, channels, (multiprocessors, target), depth, strips)
    rows += _embedding_statistics(side, channels, multiprocessors)
    rows += _head(side, channels, multiprocessors, patch)
    return rows if has_launch_tables() else [Row(r.name, r.times, {}, r.floor, r.flops) for r in rows]


def _block(branch: str, side: int, channels: int, card: tuple[int, str], depth: int, strips: bool) -> list[Row]:
    sizes, hidden = (1, side, side, channels), 4 * channels
    attention: dict[str, Kernels] = {"forward": {}, "backward": {}}
    ffn = dict(attention)
    if has_launch_tables():
        programs = efficient_attention.programs_of(1, side * side, channels, DTYPE, *card)
        for part, traffic in (("forward", efficient_attention.forward), ("backward", efficient_attention.backward)):
            attention[part] = traffic(*sizes, DTYPE, programs=programs, batch_norm=True)
        ffn = _ffn(side, channels, card, strips)
    floors = {
        "efficient attention": (
            attention_floor.bytes_moved(*sizes, DTYPE, batch_norm=True),
            attention_floor.flops(*sizes),
        ),
        "Mix-FFN": (ffn_floor.bytes_moved(*sizes, hidden, DTYPE), ffn_floor.flops(*sizes, hidden)),
    }
    return [
        Row(f"{op}, {branch}, {part}", depth, found[part], floors[op][0][part], floors[op][1][part])
        for op, found in (("efficient attention", attention), ("Mix-FFN", ffn))
        for part in found
    ]


def _ffn(side: int, channels: int, card: tuple[int, str], strips: bool) -> dict[str, Kernels]:
    from msformer_fast.kernels.mix_ffn import strip_rows

    sizes = 1, side, side, channels, 4 * channels, DTYPE
    how: dict[str, Any] = dict(
        programs=mix_ffn.programs_of(*sizes, *card),
        strip=strip_rows(1, side, side, 4 * channels, DTYPE.itemsize) if strips else None,
        resident=strips,
    )
    return {
        "forward": mix_ffn.forward(*sizes, statistics=True, **how),
        "backward": mix_ffn.backward(*sizes, kept=not strips, **how),
    }


def _embedding_statistics(side: int, channels: int, multiprocessors: int) -> list[Row]:
    """Of the two embeddings' batch norms, which the attention applies."""
    rows = []
    for branch, size in (("fine", side), ("coarse", (side + 1) // 2)):
        loaded, partials = size * size * channels * 4, 2 * multiprocessors // 2 * 4 * channels * 4
        kernels = {"moments_kernel": (1, loaded, partials), "merge_moments_kernel": (1, partials, 2 * channels * 4)}
        rows.append(Row(f"statistics of the embedding, {branch}, forward", 1, kernels, loaded))
    return rows


def _head(side: int, channels: int, multiprocessors: int, patch: int) -> list[Row]:
    head, embed = (1, side, side, channels, channels), (1, channels, side, side, channels, patch)
    floor, flops = head_floor.bytes_moved(*head, channels, patch, DTYPE), head_floor.flops(*head, channels, patch)
    patches = ((side - 1) // patch) ** 2
    kernels = {
        "forward": score_map.forward(*head, DTYPE, norms=True, gather=True, programs=2 * multiprocessors)
        | patch_embedding.forward(*embed, DTYPE, programs=multiprocessors),
        "backward": score_map.backward(*head, DTYPE, norms=True, programs=-(-multiprocessors // 16))
        | patch_embedding.backward(*embed, DTYPE, programs=multiprocessors // 2, clustering=True),
    }
    rows = [
        Row(f"score map, clustering, patches, {part}", 1, kernels[part], floor[part], flops[part]) for part in kernels
    ]
    floor, flops = stability_floor.bytes_moved(1, patches, channels, DTYPE), stability_floor.flops(1, patches, channels)
    found = {
        "forward": stability_loss.forward(1, patches, channels, DTYPE, partials=-(-patches // 16)),
        "backward": stability_loss.backward(1, patches, channels, DTYPE),
    }
    return rows + [Row(f"stability loss, {part}", 1, found[part], floor[part], flops[part]) for part in found]


def operators(backend: str, side: int, channels: int) -> tuple[int, int]:
    """Launches and bytes of PyTorch's own operators in a step, outside of the registered ops; nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from msformer_fast.benchmarks.aten_traffic import AtenTraffic
    from msformer_fast.benchmarks.training_step import training_step

    with FakeTensorMode():
        step = training_step(backend, side, channels, channels, fused=True)
        step()
        with AtenTraffic() as counted:
            step()
    return counted.launches, counted.bytes


def operators_inside(side: int, channels: int) -> tuple[int, int]:
    """Launches and bytes of PyTorch's operators inside the registered ops, counted in a step that really runs."""
    from msformer_fast.benchmarks.aten_traffic import AtenTraffic
    from msformer_fast.benchmarks.training_step import training_step

    step = training_step("triton", side, channels, channels, fused=True)
    with AtenTraffic(inside=True) as counted:
        step()
    outside = operators("triton", side, channels)
    return counted.launches - outside[0], counted.bytes - outside[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=257, help="pixels")
    parser.add_argument("--channels", type=int, default=100, help="channels and clusters")
    parser.add_argument("--multiprocessors", type=int, default=132, help="multiprocessors of the card")
    parser.add_argument("--inside", action="store_true", help="run a small step to count the operators inside the ops")
    arguments = parser.parse_args()
    side, channels = arguments.side, arguments.channels
    rows = rows_of(side, channels, multiprocessors=arguments.multiprocessors)
    print(f"{side} x {side} pixels, C = K = {channels}, float32, {arguments.multiprocessors} multiprocessors\n")
    print("| op | runs | launches | MB moved | MB floor | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        moved, floor = row.times * row.moved / 1e6, row.times * row.floor / 1e6
        print(f"| {row.name} | {row.times} | {row.launches} | {moved:.1f} | {floor:.1f} | {moved / floor:.2f} |")
    launches, moved = sum(r.launches for r in rows), sum(r.times * r.moved for r in rows)
    floor = sum(r.times * r.floor for r in rows)
    print(f"| all ops | | {launches} | {moved / 1e6:.1f} | {floor / 1e6:.1f} | {moved / floor:.2f} |")
    own, own_bytes = operators("triton", side, channels)
    print(f"| PyTorch's operators beside them | | {own} | {own_bytes / 1e6:.1f} | | |")
    if arguments.inside:
        print(f"| PyTorch's operators inside them | | {operators_inside(33, channels)[0]} | | | |")
    in_strips = rows_of(side, channels, multiprocessors=arguments.multiprocessors, strips=True)
    strip_bytes = sum(r.times * r.moved for r in in_strips)
    launches = sum(r.launches for r in in_strips)
    print(f"| all ops, hidden activations in strips that stay in the cache | | {launches} | ", end="")
    print(f"{strip_bytes / 1e6:.1f} | {floor / 1e6:.1f} | {strip_bytes / floor:.2f} |")
    plain, plain_bytes = operators("reference", side, channels)
    more = [plain_bytes / (total + own_bytes) for total in (moved, strip_bytes)]
    print(f"\nplain PyTorch: {plain} operators, {plain_bytes / 1e6:.0f} MB: {more[0]:.1f} times (strips {more[1]:.1f})")
    print("\n| predicted, not measured | float32 products | tf32 products |\n| --- | --- | --- |")
    for card in CARDS.values():
        if card.target.startswith("sm_"):  # of the make whose launch table the rows are from
            rest = own_bytes / card.bandwidth
            times = [
                1e3 * (rest + sum(r.seconds(card.bandwidth, throughput) for r in rows))
                for throughput in (card.float32, card.tf32)
            ]
            print(f"| {card.name} | {times[0]:.1f} ms | {times[1]:.1f} ms |")


if __name__ == "__main__":
    main()
