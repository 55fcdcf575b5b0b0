"""Where the figures of the pages come from: command, commit and machine of each set.

A page names a set where its figures stand, ``<!-- figures: NAME -->``; the site shows a line there, and all sets on one
page (``results/figures.md``). A set that is ``quick`` is counted again by ``python docs/check_figures.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"^ *<!-- figures: ([\w-]+) -->$", re.MULTILINE)

CPU = "two cores of a shared x86 server (AVX-512), torch 2.13, CPU build"
ONE_CORE = "one core of a shared x86 server (AVX-512), torch 2.13, CPU build"
ANY = "any machine: nothing is timed"
IMAGES = "IMAGES MASKS"


@dataclass(frozen=True)
class Figures:
    """A set of figures.

    Attributes:
        what: they are, in words.
        command: that makes them; empty where none was kept.
        commit: of the code that made them.
        machine: that made them.
        quick: counted again by ``docs/check_figures.py``.
        note: anything else that a reader must know.
    """

    what: str
    command: str
    commit: str
    machine: str
    quick: bool = False
    note: str = ""

    def line(self) -> str:
        """What the figures were made by, in Markdown."""
        source = f"`{self.command}`" if self.command else "hand, and the command was not kept"
        text = f"{source}; commit `{self.commit}`; {self.machine}."
        return f"{text} {self.note}" if self.note else text


FIGURES = {
    "demo": Figures(
        "Dice of the demo",
        "msformer-fast demo",
        "f90d306",
        "CPU, one thread, AVX-512, torch 2.13",
        quick=True,
        note="Another machine rounds differently.",
    ),
    "examples": Figures(
        "pictures of the examples",
        "python docs/check_figures.py demo examples --write",
        "f90d306",
        "CPU, one thread, AVX-512, torch 2.13",
        quick=True,
    ),
    "step": Figures(
        "seconds and memory of a step", "msformer-fast bench step --sides 65 129 257 --parts step", "ff8f98f", CPU
    ),
    "ledger": Figures(
        "launches and bytes of a step", "python -m msformer_fast.benchmarks.ledger", "756ebc9", ANY, quick=True
    ),
    "predicted": Figures(
        "predicted milliseconds of a step",
        "python -m msformer_fast.benchmarks.ledger",
        "756ebc9",
        "none: from data sheets, on no card",
        quick=True,
    ),
    "bench-cpu": Figures(
        "seconds and memory of every op",
        "msformer-fast bench --sides 65 129 257 --parts both step --seconds 1.5",
        "80e3ae6",
        CPU,
        note="Without the providers that the table does not name. Images: ff8f98f, bench image --seconds 3. "
        "overlap_embedding: 756ebc9, --seconds 3. System's allocator: 032ef3f.",
    ),
    "bench-predicted": Figures(
        "launches, bytes and predicted milliseconds of every op",
        "msformer-fast bench --sides 257",
        "756ebc9",
        "none: from data sheets, on no card",
        quick=True,
    ),
    "issued": Figures(
        "instructions of a step", "python -m tests.harness.issue_table", "756ebc9", ANY + ", Triton 3.9", quick=True
    ),
    "scaling": Figures("how costs grow", "python -m msformer_fast.benchmarks.scaling", "246dac0", CPU),
    "largest": Figures(
        "memory of a step, the largest image", "python -m msformer_fast.benchmarks.largest", "756ebc9", ANY, quick=True
    ),
    "swaps-equal": Figures("differences with and without swaps", "python -m tests.harness.swap_table", "1571035", CPU),
    "swaps-time": Figures(
        "time of a published module and its drop-in",
        "pytest benchmarks/swaps.py --benchmark-only",
        "80e3ae6",
        CPU,
    ),
    "swin": Figures(
        "time and bytes of windowed attention",
        "",
        "032ef3f",
        CPU,
        note="Bytes: of recorded launches, commit `49a984f`.",
    ),
    "swin-volumes": Figures(
        "bytes of windowed attention on volumes",
        "pytest tests/ops/test_cross_scale_attention_kernels.py -k four_maps",
        "f8c8606",
        "any: of recorded launches, on no card",
    ),
    "volumes-forward": Figures(
        "bytes of windows of volumes, forward",
        "python -m msformer_fast.benchmarks.volume_attention",
        "93b003b",
        "none: of recorded launches and data sheets, on no card",
        quick=True,
    ),
    "volumes-backward": Figures(
        "bytes of windows of volumes, backward",
        "python -m msformer_fast.benchmarks.volume_attention",
        "93b003b",
        "none: of recorded launches and data sheets, on no card",
        quick=True,
    ),
    "swin-volumes-time": Figures(
        "blocks of Swin UNETR on volumes against MONAI's",
        "python -m msformer_fast.benchmarks.swin_unetr --blocks",
        "1b828cf",
        ONE_CORE,
        note="Seconds of the processor, five rounds in turn; other programs ran on the machine meanwhile.",
    ),
    "swin-unetr": Figures("a whole Swin UNETR", "python -m msformer_fast.benchmarks.swin_unetr", "88b9bbf", CPU),
    "compile": Figures("a step eager and compiled", "", "1d934f7", CPU),
    "cross-scale": Figures(
        "Dice with and without the windows",
        f"msformer-fast evaluate {IMAGES} --size 129 --cross-scale window",
        "2249613",
        "CPU",
    ),
    "parity": Figures(
        "differences from the authors' code",
        "msformer-fast parity tests/golden/dim8_img65.npz",
        "a23471e",
        "CPU, float64",
        quick=True,
    ),
    "masks": Figures(
        "Dice of masks, and of simple methods",
        f"msformer-fast evaluate {IMAGES} --split even",
        "ea0c7d7",
        "CPU, one thread",
    ),
    "default": Figures(
        "Dice of masks by the default",
        f"msformer-fast evaluate {IMAGES} --split even",
        "6733ba7",
        "CPU, one thread",
        note="The same figures as those by the most iterations, 10.",
    ),
    "masks-ct": Figures(
        "Dice of masks on CT slices",
        f"msformer-fast evaluate {IMAGES} --split even --rule lungs-ct --size 129 --patience 6",
        "edde69b",
        "CPU, one thread",
    ),
    "prompts": Figures(
        "Dice with a click or a box",
        f"msformer-fast evaluate {IMAGES} --split even --size 129 --patience 6 --prompts point box",
        "28c91b7",
        "CPU, one thread",
    ),
    "votes": Figures(
        "Dice of one click by a vote",
        f"msformer-fast evaluate {IMAGES} --split even --prompts point",
        "6733ba7",
        "CPU, one thread",
        note="Before, and the default of before: the same runs, of which the first 10 iterations were taken.",
    ),
    "click-votes": Figures(
        "Dice of several clicks, before and after they were put to votes",
        f"msformer-fast evaluate {IMAGES} --split even --prompts point clicks box",
        "581fd8d",
        "CPU, one thread",
        note="And with --split odd; before: 271567b, of the same runs.",
    ),
    "mask-precision": Figures(
        "Dice by the precision of products",
        f"msformer-fast evaluate {IMAGES} --precision high --methods",
        "b35adb0",
        CPU,
        note="The precision was set by torch.set_float32_matmul_precision; PH2 with --split odd. tf32: 6e0b383, with "
        "--precision highest --backend torch inside a dispatch mode that rounds operands.",
    ),
    "iterations": Figures(
        "Dice by the most iterations",
        f"msformer-fast evaluate {IMAGES} --split odd --max-iterations N",
        "6733ba7",
        "CPU, one thread",
        note="Of one run an image, of which the first N iterations were taken.",
    ),
    "seconds": Figures(
        "seconds of a command",
        "msformer-fast segment IMAGE -o results",
        "d71b184",
        "one thread of a busy shared x86 server (AVX-512), torch 2.13, CPU build",
        note="One image of each kind: seconds of the processor, old and new in turn; by the clock at f202ed2, another "
        "image, twice, both threads, nothing else running.",
    ),
    "seconds-exit": Figures(
        "seconds of a command, and where they go",
        "msformer-fast segment IMAGE --threads 1",
        "c97bf97",
        "two cores of a busy shared x86 server (AVX-512), torch 2.13, CPU build",
        note="One image of each kind, once; before: 8c64c9a. Where they go: 8c64c9a, two threads, quiet. With "
        "precision high: f90d306 and 88b9bbf in turn, two threads.",
    ),
    "seconds-now": Figures(
        "seconds of a command by the clock",
        "msformer-fast segment IMAGE -o results",
        "4193ee9",
        "two quiet cores of a shared x86 server (AVX-512), torch 2.13, CPU build",
        note="One image of each kind, five times, in turn.",
    ),
    "outlines": Figures(
        "Dice and HD95 at the image's own size",
        f"msformer-fast evaluate {IMAGES} --split even --size 129 --patience 6",
        "28c91b7",
        "CPU, one thread",
        note="Of CT with the rule for X-rays, which was the only one then.",
    ),
    "frontier": Figures(
        "Dice by size and patience",
        f"python -m msformer_fast.benchmarks.frontier {IMAGES} --rule lungs --split odd --runs runs -o frontier",
        "865bf54",
        "CPU, one thread",
    ),
    "size-97": Figures(
        "Dice at 97 pixels, and after 8 iterations",
        f"msformer-fast evaluate {IMAGES} --split odd --size 97",
        "c97bf97",
        "CPU, one thread",
        note="And with --max-iterations 8; of the slices of 64 pixels every eighth by name, from the first.",
    ),
    "doubt": Figures(
        "confidence against Dice, and which masks are marked doubtful",
        "python -m msformer_fast.benchmarks.calibrate fit --plot docs/calibration.png FOLDER...",
        "d71b184",
        "CPU, one thread",
        note="Folders of 'evaluate' on whole images and on those of 'calibrate degrade', with the rule of their kind.",
    ),
    "boxes": Figures(
        "confidence of boxes and several clicks",
        "python -m msformer_fast.benchmarks.calibrate fit FOLDER...",
        "cd9399c",
        "CPU, one thread",
        note="Folders of 'evaluate --prompts clicks box' on whole images. Clicks by votes: 581fd8d.",
    ),
    "calibration": Figures(
        "which masks were marked doubtful before",
        "python -m msformer_fast.benchmarks.calibrate fit FOLDER...",
        "edde69b",
        "CPU, one thread",
    ),
    "outlines-tried": Figures("Dice by what was done to outlines", "", "c97bf97", "CPU, one thread"),
    "masks-tried": Figures(
        "what was tried", f"msformer-fast evaluate {IMAGES} --split odd", "f6c18a3", "CPU, one thread"
    ),
    "folder": Figures(
        "images an hour, and what a run costs beyond its images",
        "msformer-fast segment FOLDER -o results --size 129 --patience 6 --jobs N",
        "ff30b0b",
        CPU,
    ),
    "faults": Figures(
        "faults, and how often",
        "python -m pytest tests -k 'cohort or formats'",
        "a23471e",
        "CPU",
    ),
    "versions": Figures(
        "what other versions of Triton compile", "python -m tests.harness.version_table", "9708856", ANY
    ),
    "versions-all": Figures(
        "the same, all widths", "python -m tests.harness.version_table 3.6.0 3.9.0 --all", "fa07f4f", ANY
    ),
}

#: Pages whose figures are named so; others have none.
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def marked() -> dict[str, list[Path]]:
    """The pages on which each set stands."""
    found: dict[str, list[Path]] = {}
    for page in PAGES:
        for name in MARK.findall(page.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(page)
    return found


def block(page: Path, name: str) -> str:
    """What stands on a page from a mark to the next, or to the next heading."""
    text = page.read_text(encoding="utf-8")
    start = next(match.end() for match in MARK.finditer(text) if match[1] == name)
    end = re.compile(r"^(#+ | *<!-- figures: )", re.MULTILINE).search(text, start)
    return text[start : end.start() if end else len(text)]
