"""Writes ``benchmarks/candidates/<op>.csv``: launch settings that only a card can judge, compiled for sm_90, ranked.

``python -m tests.bench.candidate_table OP... [--kinds ieee,half,tf32,tf32x3] [--check]`` builds, for every kernel of an
op's launch table at the paper's widths:

- the present row with 2 and 3 stages;
- the present row with twice the warps;
- every block halved, alone and with the warps halved too, with 1 stage and with 2;
- half, twice and four times the programs of a persistent grid (nothing to compile).

What does not compile, spills, compiles to the present code, or neither overlaps loads nor keeps more warps resident is
left out. ``--check`` compiles what the tuner would take of the files with the Triton that is installed, and adds its
version where nothing spills, so that a file says under which versions a candidate is known to be good.

The gain is predicted by a model of one multiprocessor. A kernel's work is M seconds of memory traffic (of its recorded
launches, ``benchmarks/traffic``), L of second-level cache traffic (both operands of every product of tiles), F of
products, and S product steps, each of which waits ``STEP`` for its operands. One block does these one after the other;
n of them, resident blocks times stages (2 at most), overlap:

    time = max(M, L, F, (M + F + S STEP) / n)

It ranks; it does not foretell a time.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from msformer_fast.benchmarks import candidate_rows, judge
from msformer_fast.benchmarks.candidate_rows import Candidate
from msformer_fast.benchmarks.cards import CARDS
from msformer_fast.benchmarks.case import Case
from msformer_fast.benchmarks.precision import products
from msformer_fast.benchmarks.suite import bench_of
from msformer_fast.benchmarks.tune_tables import TABLES, Table, present
from tests.harness.aot import build, describe, refuse_interpreter

TARGET, CARD, SIDE = "sm_90", CARDS["H100 SXM"], 257

#: Second-level cache, bytes a second; the wait of a product step for its operands, seconds; what a product reaches.
L2, STEP, REACHED = 5.5e12, 0.5e-6, 0.6

#: Dtype of tensors and precision of products, by kind.
KINDS = {
    "ieee": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "half": (torch.bfloat16, "ieee"),
}

#: By op and part: the kernel, and products of its work as a multiple of pixels x C x C (K and D as C;
#: of the patch embedding, of patches' pixels; of the windows, of pixels x window x C).
WORK = {
    "mix_ffn": dict(
        expand=("expand_kernel", 4.0),
        contract=("contract_kernel", 4.5),
        hidden=("hidden_gradient_kernel", 4.8),
        token=("token_gradient_kernel", 4.3),
        product=("product_gradient_kernel", 8.5),
    ),
    "efficient_attention": dict(
        context=("context_kernel", 2.0),
        attend=("attend_kernel", 2.0),
        queries=("query_gradients_kernel", 4.0),
        tokens=("token_gradients_kernel", 5.0),
        keys=("key_gradients_kernel", 3.0),
    ),
    "guided_score_map": dict(
        gather=("scores_kernel", 2.0),
        weight_sums=("weight_sums_kernel", 2.0),
        map_gradients=("map_gradients_kernel", 2.0),
    ),
    "patch_embedding": dict(
        embed=("embed_kernel", 2.0),
        weight_grads=("weight_gradient_kernel", 2.0),
        logit_grads=("logits_gradient_kernel", 2.0),
    ),
    "cross_scale_attention": dict(
        forward=("attention_kernel", 2.0),
        fused=("fused_gradient_kernel", 5.0),
        query=("query_gradient_kernel", 3.0),
        key=("key_gradient_kernel", 4.0),
    ),
    "linear_clustering_loss": dict(
        loss=("linear_loss_kernel", 1.0),
        features=("features_gradient_kernel", 2.0),
        weight=("weight_gradient_kernel", 2.0),
    ),
    "stability_loss": dict(forward=("stability_kernel", 1.0), backward=("gradient_kernel", 4.0)),
}


def variants(table: Table, part: str, kind: str) -> list[Any]:
    """Every compilation of a part at the paper's widths with the row that is in force, the benchmark's first."""
    module = importlib.import_module(f"tests.aot.{table.op.removeprefix('guided_')}")
    dtype, precision = KINDS[kind]
    if table.op == "cross_scale_attention":
        return [c for c in module.cases_of(module.Attention(8, 32), (dtype, precision), TARGET) if _is(c, part)]
    if table.op == "stability_loss":
        names = {"forward": ("loss",), "backward": ("queries", "keys")}[part]
        product = dtype, "tf32" if kind == "half" else precision
        return [module.loss_case(100, True, product, name, TARGET) for name in names]
    wanted = re.compile(rf"{str(dtype).removeprefix('torch.')} {precision}\b")
    found = [c for c in module.cases(TARGET, True) if _is(c, part) and wanted.search(c.name)]
    first = {"guided_score_map": "batch norms", "patch_embedding": "planes", "linear_clustering_loss": "pixels inner"}
    last = first.get(table.op, "statistics")
    return sorted(found, key=lambda case: (last in case.name, "VEC 1" in case.name))


def _is(case: Any, part: str) -> bool:
    return bool(case.name.startswith(f"{part},"))


@dataclasses.dataclass(frozen=True)
class Made:
    """What came out of a compilation: as :class:`Candidate` says, and whether it is another code than before."""

    registers: int
    shared_bytes: int
    warps: int
    spill_bytes: int
    code: bytes

    @property
    def blocks(self) -> int:
        """That are resident on a multiprocessor: 64 K registers, given 256 at a time to a warp; 228 KiB shared."""
        registers = -(-self.registers * 32 // 256) * 256
        by_registers = 4 * (16384 // registers) // self.warps
        return min(64 // self.warps, 32, by_registers, 228 * 1024 // (-(-self.shared_bytes // 128) * 128 + 1024))


def compiled(case: Any) -> Made:
    """The cubin that Triton would launch, as it describes itself.

    Raises:
        RuntimeError: it does not compile, or cannot be launched.
    """
    try:
        found = build(case, TARGET)
        report = describe(case.name, TARGET, found)
    except Exception as error:
        raise RuntimeError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None
    if report.error:
        raise RuntimeError(report.error)
    code = re.sub(r"\.(?:file|loc).*|//.*", "", found.asm["ptx"]).encode()
    return Made(report.registers, report.shared_bytes, report.warps, report.spill_bytes, code)


def with_stages(case: Any, stages: int) -> Any:
    """The same compilation with so many stages."""
    return dataclasses.replace(case, options={**case.options, "num_stages": stages})


def rows_of(table: Table, base: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """What to try instead of a row: in words, the row, and stages where the table has no column for them."""
    blocks = [i for i, kind in enumerate(table.columns) if kind == "block" and base[i]]
    warps = table.columns.index("warps")
    column = table.columns.index("stages") if "stages" in table.columns else None

    def staged(row: tuple[int, ...], stages: int) -> tuple[tuple[int, ...], int]:
        if column is None:
            return row, stages if stages > 1 else 0
        return (*row[:column], stages, *row[column + 1 :]), 0

    for stages in (2, 3):
        yield (f"{stages} stages", *staged(base, stages))
    if base[warps] < 16:
        yield "warps doubled", (*base[:warps], 2 * base[warps], *base[warps + 1 :]), 0
    for index in blocks:
        half = (*base[:index], base[index] // 2, *base[index + 1 :])
        fewer = (*half[:warps], half[warps] // 2, *half[warps + 1 :])
        for name, row in ((f"block {index} halved", half), (f"block {index} and warps halved", fewer)):
            if row[index] >= 4 and row[warps] >= 2:
                yield name, row, 0
                yield (f"{name}, 2 stages", *staged(row, 2))


@contextlib.contextmanager
def forced(table: Table, keys: list[Any], row: tuple[int, ...]) -> Iterator[None]:
    module = importlib.import_module(f"msformer_fast.kernels.{table.module}")
    with candidate_rows.replaced(module.TABLE, keys, row):
        yield


def time_of(table: Table, part: str, kind: str, case: Any, made: Made, stages: int) -> float:
    """Seconds by the model, with the row that is in force."""
    bench, (dtype, precision) = bench_of(table.op), KINDS[kind]
    sizes = {**bench.sizes, "side": SIDE, "channels": bench.paper}  # type: ignore[attr-defined]
    name, times = WORK[table.op][part]
    with products(kind):
        called = Case.of(table.op, sizes, str(dtype).removeprefix("torch."))
        halves = [bench.kernels(called, half, CARD.multiprocessors, TARGET) or {} for half in ("forward", "backward")]
    _, loaded, stored = (halves[0] | halves[1])[name]
    units, width = SIDE**2, bench.paper
    if table.op == "stability_loss":
        units, width = (SIDE // sizes["patch"]) ** 2, bench.paper
        flops = 2 * times * units**2 * width
    elif table.op == "cross_scale_attention":
        flops = 2 * times * units * sizes["window"] ** 2 * width
    else:
        flops = 2 * times * units * width**2 * (2 if table.op == "patch_embedding" else 1)
    m, n, k = tile_of(table, case)
    steps, size = flops / (2 * m * n * k), dtype.itemsize
    rate = REACHED * CARD.operations("float32" if kind != "half" else "bfloat16", precision)
    memory, product = (loaded + stored) / CARD.bandwidth, flops / rate
    cache = steps * (m + n) * k * size / L2
    wait = steps / CARD.multiprocessors * STEP
    overlapped = max(made.blocks, 1) * min(stages, 2)
    return max(memory, cache, product, (memory + product + wait) / overlapped)


def tile_of(table: Table, case: Any) -> tuple[int, int, int]:
    """Sides of a product of tiles, from the blocks of a compilation."""
    c = case.constexprs
    if table.op == "mix_ffn":
        return c["TILE_H"] * c["TILE_W"], c["BLOCK_D"], c.get("BLOCK_K") or c.get("BLOCK_C") or 128
    if table.op == "cross_scale_attention":
        return c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_D"]
    names = {
        "efficient_attention": ("BLOCK_N", "BLOCK_D", "BLOCK_K"),
        "guided_score_map": ("BLOCK_N", "BLOCK_K", "BLOCK_C"),
        "linear_clustering_loss": ("BLOCK_P", "BLOCK_K", "BLOCK_D"),
        "patch_embedding": ("BLOCK_R", "BLOCK_D", "BLOCK_K"),
        "stability_loss": ("BLOCK_M", "BLOCK_N", "BLOCK_K"),
    }[table.op]
    sides = tuple(c[name] for name in names)
    return sides if table.op != "patch_embedding" else (*sides[:2], sides[2] * c.get("BLOCK_P", 1))  # type: ignore[return-value]


def candidates(table: Table, part: str, kind: str, version: str) -> Iterator[Candidate]:
    """Of one kernel and kind of products."""
    keys, base = present(table, part, kind, TARGET, bench_of(table.op).paper)
    if base is None or not (cases := variants(table, part, kind)):
        return
    has_stages = "stages" in table.columns
    stages = base[table.columns.index("stages")] if has_stages else 1
    own = compiled(cases[0])
    now = time_of(table, part, kind, cases[0], own, stages)
    print(f"{table.op} {part} {kind}: {base}: {own.registers} registers, {own.blocks} blocks", flush=True)

    def candidate(name: str, row: tuple[int, ...], more: int, grid: float, made: Made, gain: float) -> Candidate:
        facts = (made.registers, made.shared_bytes, made.warps, made.blocks * made.warps, made.spill_bytes)
        return Candidate(part, kind, name, row, more, grid, round(gain, 2), *facts, (version,))

    if part in table.shared:
        for grid in (0.5, 2.0, 4.0):
            # Twice the programs pay where a wave leaves multiprocessors waiting; half, where partial sums are added.
            yield candidate(f"grid x {grid:g}", base, 0, grid, own, {0.5: 1.0, 2.0: 1.05, 4.0: 1.02}[grid])
    codes = {own.code}
    for name, row, more in rows_of(table, base):
        with forced(table, keys, row):
            now_cases = variants(table, part, kind)
            if more:
                now_cases = [with_stages(case, more) for case in now_cases]
            if not now_cases or now_cases[0].constexprs.get("DBIAS") != cases[0].constexprs.get("DBIAS"):
                continue  # smaller tiles of windows, for which other kernels do the work, or do more of it
            try:
                made = compiled(now_cases[0])
                deeper = now_cases[0].options["num_stages"]
                if made.spill_bytes or made.code in codes:
                    continue
                codes.add(made.code)
                if deeper <= stages and made.blocks * made.warps <= own.blocks * own.warps:
                    continue
                if any(compiled(case).spill_bytes for case in now_cases[1:]):
                    continue
            except RuntimeError as error:
                print(f"  {name} {row}: {error}", flush=True)
                continue
            gain = now / time_of(table, part, kind, now_cases[0], made, deeper)
            found = candidate(name, row, more, 1.0, made, gain)
            print(
                f"  {name} {row}: {made.registers} registers, {found.resident_warps} warps, gain {gain:.2f}", flush=True
            )
            yield found


def check(table: Table, found: Candidate, version: str) -> Candidate:
    """The same with this version among those that it compiles under, or without it."""
    versions = set(found.versions) - {version}
    if found.row and found.grid == 1.0:
        keys, _ = present(table, found.part, found.kind, TARGET, bench_of(table.op).paper)
        with forced(table, keys, found.row):
            cases = variants(table, found.part, found.kind)
            if found.stages:
                cases = [with_stages(case, found.stages) for case in cases]
            try:
                made = [compiled(case) for case in cases[:1]]
            except RuntimeError as error:
                print(f"  {found.part} {found.kind} {found.text}: {error}", flush=True)
                return dataclasses.replace(found, versions=tuple(sorted(versions)))
        if any(each.spill_bytes for each in made):
            print(f"  {found.part} {found.kind} {found.text}: spills {made[0].spill_bytes}", flush=True)
            return dataclasses.replace(found, versions=tuple(sorted(versions)))
    return dataclasses.replace(found, versions=tuple(sorted(versions | {version})))


def first(found: list[Candidate]) -> list[Candidate]:
    """Those that the tuner would take: of each kernel and kind the best, and the grids."""
    kept: list[Candidate] = []
    for each in found:  # the best first
        rivals = [other for other in kept if (other.part, other.kind, other.grid) == (each.part, each.kind, 1.0)]
        if each.grid != 1 or len(rivals) < judge.MOST:
            kept.append(each)
    return kept


def write(op: str, found: list[Candidate]) -> None:
    candidate_rows.FOLDER.mkdir(exist_ok=True)
    with open(candidate_rows.FOLDER / f"{op}.csv", "w", newline="", encoding="utf-8") as file:
        file.write(f"# {TARGET}, the paper's widths; python -m tests.bench.candidate_table {op}\n")
        writer = csv.DictWriter(file, candidate_rows.FIELDS, lineterminator="\n")
        writer.writeheader()
        for each in sorted(found, key=lambda each: (-each.gain, each.part, each.kind, each.text)):
            row = dataclasses.asdict(each) | {"row": " ".join(map(str, each.row)), "versions": " ".join(each.versions)}
            writer.writerow(row | {"grid": f"{each.grid:g}"})


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="+", choices=[table.op for table in TABLES])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--check", action="store_true", help="compile what is there with this version of Triton")
    arguments = parser.parse_args()
    refuse_interpreter()
    kinds, version = arguments.kinds.split(","), triton.__version__
    for table in (table for table in TABLES if table.op in arguments.ops):
        kept = [each for each in candidate_rows.candidates_of(table.op) if arguments.check or each.kind not in kinds]
        if arguments.check:
            chosen = {id(each) for each in first(kept)}
            kept = [check(table, each, version) if id(each) in chosen else each for each in kept]
            write(table.op, [each for each in kept if each.versions])
            continue
        for kind in kinds:
            for part in table.parts:
                kept += candidates(table, part, kind, version)
                write(table.op, kept)
    print("done")


if __name__ == "__main__":
    main()
