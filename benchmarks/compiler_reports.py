"""What the compilers say of the kernels: the tables ``compiled/<kernel module>.csv``, a row for a kernel and a card.

``python -m tests.harness.aot_table`` writes them, from compilations ahead of time; no card has run them.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

from msformer_fast.benchmarks.options import DTYPES

FOLDER = Path(__file__).resolve().parent / "compiled"

#: Instructions of a step, and its pixels of a side, channels and patch.
ISSUED_FILE, ISSUED = FOLDER.parent / "issued.csv", (257, 100, 32)

#: Tables of an op whose kernels stand in others than that of its own name, or in more.
TABLES = {
    "overlap_embedding": ("overlap_embedding", "batch_statistics"),
    "patch_embedding": ("patch_embedding", "batch_statistics", "partial_sums"),
    "guided_score_map": ("score_map", "patch_embedding", "partial_sums"),
    "cross_scale_attention": ("cross_scale_attention", "partial_sums"),
}
_STEP = (
    *("overlap_embedding", "efficient_attention", "mix_ffn", "score_map", "patch_embedding", "stability_loss"),
    *("weighted_losses", "batch_statistics", "partial_sums"),
)
TABLES |= dict.fromkeys(("step", "image"), _STEP)


class Report(NamedTuple):
    """One row.

    Attributes:
        case: the kernel, its widths, its dtype and further options, with commas.
        target: the card's architecture.
        registers: of a thread.
        occupancy: warps that can be resident at once on a multiprocessor / the most it holds.
    """

    case: str
    target: str
    registers: int
    occupancy: str

    @property
    def share(self) -> float:
        """The occupancy as a number."""
        resident, most = self.occupancy.split("/")
        return int(resident) / int(most)


@functools.cache
def reports_of(module: str) -> tuple[Report, ...]:
    """All rows of a kernel module's table; none where there is no table."""
    path = FOLDER / f"{module}.csv"
    if not path.exists():
        return ()
    with open(path, newline="", encoding="utf-8") as file:
        file.readline()  # Triton's version
        rows = csv.DictReader(file)
        return tuple(Report(row["case"], row["target"], int(row["registers"]), row["occupancy"]) for row in rows)


@functools.cache
def worst(op: str, dtype: str, precision: str, target: str) -> tuple[int | None, str | None]:
    """Most registers and lowest occupancy of any kernel of the op, at any width, options included.

    Args:
        op: or ``"step"`` or ``"image"``.
        dtype: of the tensors; kernels that know of none count too.
        precision: of float32 products, ``"ieee"``, ``"tf32"`` or ``"tf32x3"``; of kernels without the last, ``"ieee"``.

    Returns:
        Registers of a thread, and the occupancy as ``"16/64"``; ``None`` twice for a card or a dtype that one of the
        op's tables has not.
    """
    found: list[Report] = []
    for module in TABLES.get(op, (op,)):
        of_card = [r for r in reports_of(module) if r.target == target]
        reports = [r for r in of_card if _is_of(r.case, dtype, served(module, precision, target))]
        if not any(dtype in r.case for r in reports):
            return None, None
        found += reports
    return max(report.registers for report in found), min(found, key=lambda report: report.share).occupancy


def served(op: str, precision: str, target: str) -> str:
    """``precision``, but ``"ieee"`` in place of a ``"tf32x3"`` that no kernel of an op was compiled with for a card."""
    reports = [report for module in TABLES.get(op, (op,)) for report in reports_of(module)]
    compiled = any(precision in report.case for report in reports if report.target == target)
    return "ieee" if precision == "tf32x3" and not compiled else precision


def _is_of(case: str, dtype: str, precision: str) -> bool:
    words = case.replace(",", " ").split()
    if not set(words) & set(DTYPES):
        return True
    if dtype not in words or "as" in words or "autocast" in words:  # products in another dtype than tensors
        return False
    return dtype != "float32" or not {"ieee", "tf32", "tf32x3"} & set(words) or precision in words


@functools.cache
def issued(target: str, products: str, side: int, channels: int, patch: int) -> dict[tuple[str, str, str], float]:
    """Instructions that a training step issues with one block a branch, by op, branch and part.

    Args:
        target: the card's architecture.
        products: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
        side, channels, patch: of the step, with as many clusters as channels.

    Returns:
        The counts of ``python -m tests.harness.issue_table``; nothing for what it did not count.
    """
    found: dict[tuple[str, str, str], float] = {}
    if not ISSUED_FILE.exists() or (side, channels, patch) != ISSUED:
        return found
    with open(ISSUED_FILE, newline="", encoding="utf-8") as file:
        file.readline()  # Triton's version
        for row in csv.DictReader(file):
            if (row["target"], row["products"]) == (target, products):
                key = row["op"], row["branch"], row["part"]
                found[key] = found.get(key, 0.0) + 1e6 * float(row["million_instructions"])
    return found
