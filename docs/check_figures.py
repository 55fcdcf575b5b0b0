"""Make the quick figures of the pages again, and name those that no longer match.

    python docs/check_figures.py                   # all of them: some minutes on two cores
    python docs/check_figures.py ledger issued     # some, by the names of docs/provenance.py
    python docs/check_figures.py demo examples --write  # put the pictures in place of those that are there

Exit code 1 where a figure differs. A figure matches if it is the value, rounded to the digits that are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from provenance import FIGURES, ROOT, block, marked  # noqa: E402

#: A figure: where it stands, as it is shown, and what it is now.
Figure = tuple[str, str, float | str]

PICTURES = HERE / "pictures"
#: Mean difference of two pictures, in grey levels, from which they show something else: a mask moved by some pixels.
PICTURES_DIFFER = 3.0
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def agrees(shown: str, value: float | str) -> bool:
    """Whether a figure is the value, rounded to the digits that are shown; words are compared as they are."""
    if isinstance(value, str):
        return shown == value
    match = re.search(r"\d[\d,]*(\.\d+)?", shown)
    if match is None:
        return False
    unit = next((size for name, size in UNITS.items() if shown.endswith(name)), 1.0)
    half = 0.5 * 10.0 ** -(len(match[1]) - 1 if match[1] else 0)
    return abs(float(match[0].replace(",", "")) - value / unit) <= half * (1 + 1e-6)


def rows(text: str) -> dict[str, list[str]]:
    """Lines of the tables in a text: the other cells by the first one."""
    lines = [line.strip().strip("|").split(" | ") for line in text.splitlines() if line.strip().startswith("|")]
    return {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines if not set(first) <= set("- |")}


def page_of(name: str) -> Path:
    """The page on which a set stands, the README last."""
    return min(marked()[name], key=lambda page: (page.name == "README.md", str(page)))


def in_words(name: str, phrases: dict[str, float]) -> Iterator[Figure]:
    """Figures in a sentence: each phrase has one ``#`` where the number stands."""
    text = " ".join(block(page_of(name), name).split())
    for phrase, value in phrases.items():
        found = re.search(re.escape(phrase).replace(r"\#", r"([\d.,]*\d)"), text)
        yield phrase, found[1] if found else "no such words", value


def ledger() -> Iterator[Figure]:
    from msformer_fast.benchmarks.ledger import operators, rows_of

    whole = rows_of(257, 100, multiprocessors=132)
    strips = rows_of(257, 100, multiprocessors=132, strips=True)
    shown = rows(block(page_of("ledger"), "ledger"))
    groups = {
        "efficient attention, four blocks": [row for row in whole if row.name.startswith("efficient")],
        "Mix-FFN, four blocks": [row for row in whole if row.name.startswith("Mix")],
        "both embeddings": [row for row in whole if row.name.startswith("both")],
        "score map, clustering loss, patch embedding": [row for row in whole if row.name.startswith("score")],
        "stability loss": [row for row in whole if row.name.startswith("stability")],
        "all kernels": whole,
        next(name for name in shown if name.startswith("all kernels, ")): strips,
    }
    for name, group in groups.items():
        moved, floor = (sum(row.times * getattr(row, what) for row in group) for what in ("moved", "floor"))
        values = (sum(row.launches for row in group), moved, floor, moved / floor)
        yield from ((name, cell, value) for cell, value in zip(shown[name], values, strict=True))
    for start, backend in (("PyTorch's operators", "triton"), ("the same step in plain", "reference")):
        name = next(name for name in shown if name.startswith(start))
        launches, moved = operators(backend, 257, 100)
        yield from ((name, cell, value) for cell, value in zip(shown[name][:2], (launches, moved), strict=True))


def predicted() -> Iterator[Figure]:
    from msformer_fast.benchmarks import ledger as module

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _arguments("ledger"):
        module.main()
    cards = {name: [float(cell.split()[0]) for cell in cells[:1] + cells[2:3]] for name, cells in _cards(printed)}
    (plain, strips) = re.findall(r"([\d.]+) times \(strips ([\d.]+)\)", printed.getvalue())[0]
    a100, h100, ada = (cards[name] for name in ("A100 SXM 80 GB", "H100 SXM", "RTX 4090"))
    yield from in_words(
        "predicted",
        {
            "So # times fewer bytes": float(plain),
            "plain PyTorch, # times where": float(strips),
            "at least # ms a step": h100[0],
            "in float32 (# ms with tf32": h100[1],
            f"products), # ({a100[1]}) on an A100": a100[0],
            f"and # ({ada[1]}) on an RTX 4090": ada[0],
        },
    )


@contextlib.contextmanager
def _arguments(*words: str) -> Iterator[None]:
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before


def _cards(printed: io.StringIO) -> list[tuple[str, list[str]]]:
    return [(name, cells) for name, cells in rows(printed.getvalue()).items() if cells and cells[0].endswith(" ms")]


def issued() -> Iterator[Figure]:
    from msformer_fast.benchmarks.ledger import rows_of

    shown = rows(block(page_of("issued"), "issued"))
    columns = [(target, how) for target in ("sm_80", "sm_90") for how in ("float32", "tf32", "bfloat16")]
    for column, (target, how) in enumerate(columns):
        found = rows_of(257, 100, multiprocessors=132, target=target, products=how)
        whole = sum(row.times * row.instructions for row in found) / 1e6
        parts = {
            start: sum(row.times * row.instructions for row in found if row.name.startswith(start)) / 1e6
            for start in ("Mix-FFN", "efficient attention")
        }
        parts["embeddings, head, patches, losses, statistics"] = whole - sum(parts.values())
        for name, value in {**parts, "a step": whole}.items():
            yield f"{name}, {target}, {how}", shown[name][column], value


def bench_predicted() -> Iterator[Figure]:
    from msformer_fast.benchmarks.case import Wanted
    from msformer_fast.benchmarks.options import OPS
    from msformer_fast.benchmarks.predict import predict
    from msformer_fast.benchmarks.suite import bench_of

    shown = rows(block(page_of("bench-predicted"), "bench-predicted"))
    cards = ("A100 SXM 80 GB", "H100 SXM", "H200 SXM", "RTX 4090", "MI300X")
    for name in (*OPS, "step"):
        bench = bench_of(name)
        (case,) = bench.cases("cpu", ["float32"], Wanted(sides=(257,)))
        found = [each for each in predict([(bench, case)], cards) if each.part in ("both", "step")]
        one, cells = found[cards.index("H100 SXM")], shown[f"`{name}`"]
        values = [one.launches, one.moved_bytes / 1e6, one.moved_bytes / one.floor_bytes]
        values += [1e3 * each.seconds for each in found]
        yield from (
            (f"{name}, column {i}", cell, value) for i, (cell, value) in enumerate(zip(cells, values, strict=False))
        )


def volumes(part: str) -> Iterator[Figure]:
    from msformer_fast.benchmarks.volume_attention import rows as figures_of

    shown = rows(block(page_of(f"volumes-{part}"), f"volumes-{part}"))
    found = figures_of(part, "bfloat16", "H100 SXM")
    for name, values in found.items():
        yield from ((name, cell, value) for cell, value in zip(shown[name], values, strict=True))


def volumes_forward() -> Iterator[Figure]:
    from msformer_fast.benchmarks.cards import CARDS
    from msformer_fast.benchmarks.volume_attention import STAGES

    yield from volumes("forward")
    first, card = STAGES[24][0], CARDS["H100 SXM"]
    exponentials = first.side**3 * first.window**3 * first.heads
    biases = 2 * -((-first.side // first.window) ** 3) * first.heads * first.window**6
    a_second = 16 * card.multiprocessors * card.clock
    yield from in_words(
        "volumes-forward",
        {"of which # MB are written": biases / 1e6, "multiprocessor, take # ms": 1e3 * exponentials / a_second},
    )


def largest() -> Iterator[Figure]:
    from msformer_fast.benchmarks.largest import PROVIDERS, peak_bytes

    shown = rows(block(page_of("largest"), "largest"))
    columns = ("reference", "torch", "torch-lean", "native", "triton", "triton-lean")
    for column, name in enumerate(columns):
        backend, memory = PROVIDERS[name]
        device = "cuda" if backend == "triton" else "cpu"
        for side in (257, 513):
            value = peak_bytes(backend, memory, side, device=device) / 1e9
            yield f"GB at {side}, {name}", shown[f"GB at {side}"][column], value


def parity() -> Iterator[Figure]:
    from msformer_fast.parity import compare

    worst = 0.0
    for backend in ("reference", "torch"):
        found = compare(ROOT / "tests" / "golden" / "dim8_img65.npz", backend=backend)
        assert all(each.passed for each in found)
        worst = max(worst, *(each.error for each in found if not each.name.startswith("labels")))
    (shown,) = re.findall(r"measured: (\S+) at most", block(page_of("parity"), "parity"))
    yield "largest error, at most", shown, shown if worst <= float(shown) else f"{worst:.0e}"


def demo(write: bool = False) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "msformer_fast", "demo", "-o", folder, "--threads", "1"]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        made = Path(folder) / "phantom_lesion_panel.png"
        same = alike(made, HERE / "demo.png")
        if write:
            shutil.copyfile(made, HERE / "demo.png")
        yield "the README's picture", "as it is drawn" if same else "another picture", "as it is drawn"
    (now,) = (line for line in printed.splitlines() if line.startswith("Dice"))
    (shown,) = (line for line in block(page_of("demo"), "demo").splitlines() if line.startswith("Dice"))
    yield "the scores", shown, now


def examples(write: bool = False) -> Iterator[Figure]:
    sys.path.append(str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("segment_and_look", "losses_in_your_model", "write_a_rule"):
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(f"examples.{name}").main(folder)
        for made in sorted(Path(folder).iterdir()):
            there = PICTURES / made.name
            same = there.exists() and alike(made, there)
            yield made.name, "as it is drawn" if same else "another picture", "as it is drawn"
            if write:
                shutil.copyfile(made, there)


def alike(made: Path, there: Path) -> bool:
    """Whether two pictures show the same; of plots, whether they have as many curves and the same words."""
    if made.suffix == ".svg":
        curves = [re.findall(r"<!-- .*? -->", path.read_text(encoding="utf-8")) for path in (made, there)]
        return curves[0] == curves[1]
    import numpy as np
    from PIL import Image

    pictures = [np.asarray(Image.open(path), dtype=float) for path in (made, there)]
    if pictures[0].shape != pictures[1].shape:
        return False
    return float(np.abs(pictures[0] - pictures[1]).mean()) < PICTURES_DIFFER


QUICK: dict[str, Callable[[], Iterator[Figure]]] = {
    "ledger": ledger,
    "predicted": predicted,
    "issued": issued,
    "bench-predicted": bench_predicted,
    "volumes-forward": volumes_forward,
    "volumes-backward": lambda: volumes("backward"),
    "largest": largest,
    "parity": parity,
    "demo": demo,
    "examples": examples,
}


#: Those that have pictures, which ``--write`` puts in place.
DRAWN = {"demo": demo, "examples": examples}


def differing(name: str) -> list[str]:
    """Figures of one set that no longer match, a line each."""
    found = list(QUICK[name]())
    if not found:
        return [f"{name}: no figure was found"]
    return [f"{name}: {where}: shown {shown}, now {value}" for where, shown, value in found if not agrees(shown, value)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(QUICK)}")
    parser.add_argument("--write", action="store_true", help="with demo and examples: put the pictures in place")
    options = parser.parse_args()
    unknown = set(options.names) - set(QUICK)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: accepted are {', '.join(QUICK)}")
    failed = False
    for name in options.names or QUICK:
        if name in DRAWN and options.write:
            list(DRAWN[name](write=True))
            continue
        lines = differing(name)
        print("\n".join(lines) or f"{name}: as shown ({FIGURES[name].what})", flush=True)
        failed |= bool(lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
