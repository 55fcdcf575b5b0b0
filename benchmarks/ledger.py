"""What a whole training step moves, op by op, beside the least that it must and beside plain PyTorch.

    python -m msformer_fast.benchmarks.ledger [--side 257] [--channels 100] [--multiprocessors 132]

Bytes of the kernels are those of the launches of a step on tensors without data (``benchmarks/traffic``), which tests
hold to what Triton's interpreter counts at small sizes; a kernel's reads count each address once a launch, as a perfect
cache would. Bytes of PyTorch's operators are those of their arguments and results (``benchmarks/aten_traffic``).
Instructions are counted in the machine code (``python -m tests.harness.issue_table``). Times are predictions from data
sheets: of each op the slowest of its bytes over the bandwidth, its useful operations over the throughput, and the
instructions that it issues. No GPU has measured them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast.benchmarks.aten_traffic import AtenTraffic
from msformer_fast.benchmarks.cards import CARDS, Card
from msformer_fast.benchmarks.compiler_reports import issued
from msformer_fast.benchmarks.traffic import Kernels, Launch, has_launch_tables
from msformer_fast.benchmarks.training_step import IN_CHANNELS, training_step
from msformer_fast.benchmarks.without_data import without_launches
from msformer_fast.errors import BackendError
from msformer_fast.floors import efficient_attention as attention_floor
from msformer_fast.floors import guided_score_map as head_floor
from msformer_fast.floors import mix_ffn as ffn_floor
from msformer_fast.floors import overlap_embedding as embedding_floor
from msformer_fast.floors import stability_loss as stability_floor
from msformer_fast.floors import weighted_losses as losses_floor
from msformer_fast.ops.precision import input_precision

DTYPE, TARGET, PATCH = torch.float32, "sm_90", 32


@dataclass
class Row:
    """One op, forward or backward, as often as a step runs it.

    Attributes:
        kernels: of one run, see :data:`benchmarks.traffic.Kernels`.
        floor: bytes that one run must move.
        flops: useful operations of the products of one run.
        instructions: that the warps of one run issue; 0 where nobody counted them.
    """

    name: str
    times: int
    kernels: Kernels
    floor: int
    flops: int = 0
    instructions: float = 0.0
    moved: int = field(init=False)

    def __post_init__(self) -> None:
        self.moved = sum(loaded + stored for _, loaded, stored in self.kernels.values())

    @property
    def launches(self) -> int:
        return self.times * sum(launches for launches, _, _ in self.kernels.values())

    def seconds(self, card: Card, throughput: float) -> float:
        """At least, on a card, with products of that many operations a second."""
        terms = card.least_seconds(self.moved, self.flops, throughput, self.instructions)
        return self.times * max(terms.values())


def rows_of(
    side: int,
    channels: int,
    *,
    multiprocessors: int,
    depth: int = 2,
    patch: int = PATCH,
    strips: bool = False,
    target: str = TARGET,
    products: str = "float32",
) -> list[Row]:
    """Every op of a step on one square image, with C channels and as many clusters.

    Args:
        multiprocessors, target: of the card.
        strips: the Mix-FFN of ``memory="lean"``, on a card whose last cache keeps a strip of the hidden activations
            and of their gradient.
        products: whose instructions are counted: ``"float32"``, ``"tf32"`` or ``"bfloat16"``; of the paper's step
            alone, without strips.

    Returns:
        The rows; without kernels, the floors alone, where triton is not installed or the kernels refuse.
    """
    found: dict[tuple[str, str, str], Kernels] = {}
    if has_launch_tables():
        with contextlib.suppress(BackendError):  # wider than the kernels take
            found = _recorded(side, channels, patch, strips, multiprocessors, target, input_precision(DTYPE, target))
    counted = {} if strips else issued(target, products, side, channels, patch)
    patches = ((side - 1) // patch) ** 2
    head = (1, side, side, channels, channels)
    rows = []

    def add(name: str, times: int, key: tuple[str, str], floors: dict[str, int], flops: dict[str, int]) -> None:
        for part in floors:
            kernels, instructions = found.get((*key, part), {}), counted.get((*key, part), 0.0)
            rows.append(Row(f"{name}, {part}", times, kernels, floors[part], flops.get(part, 0), instructions))

    for branch, size in (("fine", side), ("coarse", (side + 1) // 2)):
        tokens, hidden = (1, size, size, channels), 4 * channels
        moved = attention_floor.bytes_moved(*tokens, DTYPE, batch_norm=True)
        name, key = f"efficient attention, {branch}", ("efficient_attention", branch)
        add(name, depth, key, moved, attention_floor.flops(*tokens))
        moved = ffn_floor.bytes_moved(*tokens, hidden, DTYPE)
        add(f"Mix-FFN, {branch}", depth, ("mix_ffn", branch), moved, ffn_floor.flops(*tokens, hidden))
    image = (1, side, side, IN_CHANNELS, channels)
    moved = embedding_floor.bytes_moved(*image, DTYPE)
    add("both embeddings", 1, ("overlap_embedding_of_two", "both"), moved, embedding_floor.flops(*image))
    moved = head_floor.bytes_moved(*head, channels, patch, DTYPE)
    flops = head_floor.flops(*head, channels, patch)
    add("score map, clustering, patches", 1, ("guided_score_map", "both"), moved, flops)
    moved = stability_floor.bytes_moved(1, patches, channels, DTYPE)
    add("stability loss", 1, ("stability_loss", "both"), moved, stability_floor.flops(1, patches, channels))
    moved = losses_floor.bytes_moved(1, channels, channels, DTYPE)
    add("consistency, sum of the losses", 1, ("weighted_losses", "both"), moved, {})
    return rows


@cache
def _recorded(
    side: int, channels: int, patch: int, strips: bool, multiprocessors: int, target: str, precision: str
) -> dict[tuple[str, str, str], Kernels]:
    """Kernels of every registered op of a step with a block a branch, by op, branch and part.

    Args:
        precision: of float32 products, which the launchers read themselves.
    """
    from msformer_fast.benchmarks.traffic.partly import RESIDENT
    from msformer_fast.benchmarks.traffic.recorded import recorded_launches, to_memory

    how: dict[str, Any] = {"memory": "lean" if strips else "fast", "depth": 1, "patch": patch}
    with recorded_launches(multiprocessors, target) as launches:
        training_step("triton", side, channels, channels, **how)()
    found: dict[tuple[str, str, str], list[Launch]] = {}
    for launch in launches:
        found.setdefault(place_in_step(launch, side, channels), []).append(launch)
    return {key: to_memory(each, RESIDENT if strips else None) for key, each in found.items()}


def place_in_step(launch: Launch, side: int, channels: int) -> tuple[str, str, str]:
    """The op in which a step makes a launch, the branch, and whether it is part of the forward or the backward."""
    op, part = launch.op.removesuffix("_backward"), "backward" if launch.op.endswith("_backward") else "forward"
    branch = "both"
    if op in ("efficient_attention", "mix_ffn"):
        branch = "fine" if math.prod(launch.shape) == side * side * channels else "coarse"
    return op, branch, part


def operators(backend: str, side: int, channels: int, *, inside: bool = False) -> tuple[int, int]:
    """Launches and bytes of PyTorch's own operators in a step; nothing is computed.

    Args:
        inside: those in the bodies of the registered ops too.
    """
    with without_launches(), FakeTensorMode():
        step = training_step(backend, side, channels, channels)
        step()
        with AtenTraffic(inside) as counted:
            step()
    return counted.launches, counted.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=257, help="pixels")
    parser.add_argument("--channels", type=int, default=100, help="channels and clusters")
    parser.add_argument("--multiprocessors", type=int, default=132, help="multiprocessors of the card")
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
    inside, inside_bytes = operators("triton", side, channels, inside=True)
    print(f"| PyTorch's operators inside them | | {inside - own} | {(inside_bytes - own_bytes) / 1e6:.1f} | | |")
    in_strips = rows_of(side, channels, multiprocessors=arguments.multiprocessors, strips=True)
    strip_bytes = sum(r.times * r.moved for r in in_strips)
    launches = sum(r.launches for r in in_strips)
    print(f"| all ops, hidden activations in strips that stay in the cache | | {launches} | ", end="")
    print(f"{strip_bytes / 1e6:.1f} | {floor / 1e6:.1f} | {strip_bytes / floor:.2f} |")
    plain, plain_bytes = operators("reference", side, channels)
    more = [plain_bytes / (total + own_bytes) for total in (moved, strip_bytes)]
    print(f"\nplain PyTorch: {plain} operators, {plain_bytes / 1e6:.0f} MB: {more[0]:.1f} times (strips {more[1]:.1f})")
    columns = ("predicted, not measured", *("float32 products", "issuing alone", "tf32 products", "issuing alone"))
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for card in CARDS.values():
        if not card.target.startswith("sm_"):  # none of the other make's instructions were counted
            continue
        cells = [card.name]
        for products in ("float32", "tf32"):
            precision = "tf32" if products == "tf32" else input_precision(DTYPE, card.target)
            throughput = card.operations("float32", precision)
            of_card: dict[str, Any] = {"multiprocessors": card.multiprocessors, "target": card.target}
            rows = rows_of(side, channels, products=products, **of_card)
            issue = sum(row.times * row.instructions for row in rows) / card.issue
            least = own_bytes / card.bandwidth + sum(row.seconds(card, throughput) for row in rows)
            cells += [f"{1e3 * least:.1f} ms", f"{1e3 * issue:.1f} ms" if issue else "not counted"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
