"""The least that cases take on cards that are not here, from recorded launches and data sheets. Nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from msformer_fast.benchmarks.cards import CARDS, Card
from msformer_fast.benchmarks.case import Bench, Case, Kernels, check_names
from msformer_fast.benchmarks.compiler_reports import served, worst
from msformer_fast.benchmarks.traffic import has_launch_tables
from msformer_fast.errors import BackendError
from msformer_fast.ops.precision import input_precision

HALVES = ("forward", "backward")
HEADING = "predicted, not measured: at least, ms"
SOURCES = (
    "No GPU measured these. Bytes are those of recorded launches, which tests hold to the interpreter's count, each "
    "address read once a launch; operations those that the op needs; of the paper's step also the instructions that "
    "it issues, counted in the machine code of sm_80 and sm_90; bandwidth, throughput and clock from the vendors' data "
    "sheets. Not in it: launches themselves and PyTorch's own operators beside the kernels. A cache that keeps maps "
    "from one launch to the next may spare some of the bytes."
)
COMPILED = "compiled ahead of time for these cards, not run on them; no kernel spills:"
FLOORS = "*: from the least that must be moved alone, for the kernels' own launches are not known"


@dataclass(frozen=True)
class Prediction:
    """Of one case and part on one card, by the kernels with ``memory="fast"``.

    Attributes:
        card: name, see :data:`msformer_fast.benchmarks.cards.CARDS`.
        bench, sizes, dtype, part: the case.
        seconds: at least: of each half, or of each op of a step, the slowest of bytes, products and, where they were
            counted, instructions; then their sum.
        moved_bytes: of the kernels; ``floor_bytes`` where these are not known.
        floor_bytes, flops: the least that must be moved and computed.
        launches: of kernels; 0 where these are not known.
        registers: most of a thread, and occupancy: lowest (``"16/64"`` warps), of any kernel of the op in this dtype on
            this architecture, from the compilers' reports; ``None`` where there are none.
        bound: ``"memory"``, ``"products"`` or ``"instructions"``, whichever alone takes longest.
    """

    card: str
    bench: str
    sizes: dict[str, int]
    dtype: str
    part: str
    seconds: float
    moved_bytes: int
    floor_bytes: int
    flops: int
    launches: int
    registers: int | None
    occupancy: str | None
    bound: str


class _Piece(NamedTuple):
    """What runs after another: bytes moved and at least, operations, launches, instructions issued (0: not counted)."""

    moved: int
    floor: int
    flops: int
    launches: int
    instructions: float = 0.0

    @classmethod
    def of(cls, kernels: Kernels | None, floor: int, flops: int, instructions: float = 0.0) -> _Piece:
        if not kernels:
            return cls(floor, floor, flops, 0)
        moved = sum(loaded + stored for _, loaded, stored in kernels.values())
        return cls(moved, floor, flops, sum(launches for launches, _, _ in kernels.values()), instructions)

    def times(self, count: int) -> _Piece:
        return _Piece(*(count * value for value in self))  # type: ignore[arg-type]

    def terms(self, card: Card, operations: float) -> dict[str, float]:
        """Seconds by what may bound it."""
        return card.least_seconds(self.moved, self.flops, operations, self.instructions)


def predict(cases: Sequence[tuple[Bench, Case]], cards: Sequence[str] = tuple(CARDS)) -> list[Prediction]:
    """Of every case and part on every card, in that order; none of a part whose floor nobody has counted.

    Float32 products are as :func:`torch.get_float32_matmul_precision` says now, as those of the kernels are. Without
    triton installed the bytes are those of the floors.

    Raises:
        InputError: a card that is not known.
    """
    check_names("card", cards, CARDS)
    return [
        _prediction(CARDS[card], case, part, pieces)
        for bench, case in cases
        for part in bench.parts
        for card in cards
        if (pieces := _pieces(bench, case, part, CARDS[card]))
    ]


def _prediction(card: Card, case: Case, part: str, pieces: Sequence[_Piece]) -> Prediction:
    precision = served(case.bench, input_precision(torch.float32, card.target), card.target)
    operations = card.operations(case.dtype, precision)
    whole = _Piece(*map(sum, zip(*pieces, strict=True)))
    terms = whole.terms(card, operations)
    registers, occupancy = worst(case.bench, case.dtype, precision, card.target)
    return Prediction(
        card=card.name,
        bench=case.bench,
        sizes=dict(case.sizes),
        dtype=case.dtype,
        part=part,
        seconds=sum(max(piece.terms(card, operations).values()) for piece in pieces),
        moved_bytes=whole.moved,
        floor_bytes=whole.floor,
        flops=whole.flops,
        launches=whole.launches,
        registers=registers,
        occupancy=occupancy,
        bound=max(terms, key=lambda term: terms[term]),
    )


def _pieces(bench: Bench, case: Case, part: str, card: Card) -> list[_Piece]:
    halves = (part,) if part in HALVES else HALVES
    if bench.name in ("step", "image"):
        return [piece.times(case.get("iterations", 1)) for piece in _of_step(case, halves, card)]
    pieces = []
    for half in halves:
        floor = bench.floor(case, half)
        if floor is None:
            return []
        pieces.append(_Piece.of(_kernels(bench, case, half, card), floor.bytes, floor.flops))
    return pieces


def _of_step(case: Case, halves: Iterable[str], card: Card) -> list[_Piece]:
    from msformer_fast.benchmarks.ledger import rows_of

    sizes: dict[str, Any] = {name: case[name] for name in ("side", "channels", "depth", "patch")}
    products = "tf32" if input_precision(torch.float32) == "tf32" else "float32"
    rows = rows_of(**sizes, multiprocessors=card.multiprocessors, target=card.target, products=products)
    return [
        _Piece.of(row.kernels, row.floor, row.flops, row.instructions).times(row.times)
        for row in rows
        if row.name.endswith(tuple(halves))
    ]


def _kernels(bench: Bench, case: Case, half: str, card: Card) -> Kernels | None:
    if not has_launch_tables():
        return None
    try:
        return bench.kernels(case, half, card.multiprocessors, card.target)
    except BackendError:  # the case is wider than the kernels take
        return None


def table(predictions: Sequence[Prediction]) -> list[str]:
    """Lines for a terminal: a row for each case and part, a column for each card; then what the compilers say."""
    cards = list(dict.fromkeys(p.card for p in predictions))
    rows: dict[tuple[str, str], dict[str, Prediction]] = {}
    for p in predictions:
        rows.setdefault((str(Case.of(p.bench, p.sizes, p.dtype)), p.part), {})[p.card] = p
    cells = [["case", "part", "launches", "MB moved", "of floor", *cards]]
    for (case, part), found in rows.items():
        one = next(iter(found.values()))
        moved = f"{one.moved_bytes / 1e6:.1f}", f"{one.moved_bytes / one.floor_bytes:.2f}"
        figures = [_cell(found.get(card)) for card in cards]
        cells.append([case, part, str(one.launches or "-"), *moved, *figures])
    reports = [["largest registers a thread, lowest occupancy", "", *cards]]
    for bench, dtype in dict.fromkeys((p.bench, p.dtype) for p in predictions):
        named = {p.card: p for p in predictions if (p.bench, p.dtype) == (bench, dtype)}
        reports.append([bench, dtype, *(_report(named.get(card)) for card in cards)])
    lines = [HEADING, *_columns(cells)]
    if any(p.launches == 0 for p in predictions):
        lines.append(FLOORS)
    return [*lines, SOURCES, "", COMPILED, *_columns(reports)]


def _columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Aligned: two columns of words, the others of figures."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def _report(p: Prediction | None) -> str:
    return "-" if p is None or p.registers is None else f"{p.registers}, {p.occupancy}"


def _cell(p: Prediction | None) -> str:
    if p is None:
        return "-"
    ms, mark = 1e3 * p.seconds, "*" if p.launches == 0 else ""
    digits = max(0, 2 - math.floor(math.log10(ms))) if ms > 0 else 0
    return f"{ms:.{digits}f}{mark}"
