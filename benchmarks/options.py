"""Names and options of ``msformer-fast bench``, without importing torch: the command line's help is quick."""

from __future__ import annotations

import argparse

OPS = (
    "clustering_loss",
    "linear_clustering_loss",
    "stability_loss",
    "patch_embedding",
    "score_map",
    "guided_score_map",
    "efficient_attention",
    "mix_ffn",
    "overlap_embedding",
    "cross_scale_attention",
)
NAMES = (*OPS, "step", "image")
DTYPES = ("float32", "bfloat16", "float16")

#: A change between two runs that is smaller is nobody's concern, however sure it is.
THRESHOLD = 0.10

#: Seconds for the rounds of one case and part.
SECONDS, QUICK_SECONDS = 3.0, 0.7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("benches", nargs="*", metavar="BENCH", help=f"some of {', '.join(NAMES)} (default: all)")
    add("-o", "--output", default="msformer-fast-bench", metavar="DIR", help="folder (%(default)s)")
    add("--overwrite", action="store_true", help="replace the results of an earlier run")
    add("--quick", action="store_true", help="two small sizes and few rounds, nothing compiled: some minutes")
    add("--base", metavar="RESULTS.json", help="compare with an earlier run; exit code 1 if something got slower")
    add("--threshold", type=float, default=THRESHOLD, help="least change that counts with --base (%(default)s)")
    add("--device", choices=("cpu", "cuda"), help="(default: cuda where there is one)")
    add(
        "--dtypes", nargs="+", metavar="DTYPE", help=f"of {', '.join(DTYPES)} (default: float32; on a GPU bfloat16 too)"
    )
    add("--sides", nargs="+", type=int, metavar="PIXELS", help="height and width of the maps")
    add("--channels", nargs="+", type=int, metavar="C", help="channels of every map")
    add("--providers", nargs="+", metavar="NAME", help="who takes part (default: all that can)")
    add("--parts", nargs="+", metavar="PART", help="forward, backward, both, step or image (default: all)")
    add("--seconds", type=float, help=f"for the rounds of a case and part ({SECONDS}; with --quick {QUICK_SECONDS})")
    add("--seed", type=int, help="of the random inputs (default: a fresh one, recorded)")
    add("--nvtx", action="store_true", help="name every call for Nsight Systems and Nsight Compute")
    add(
        "--allocator",
        choices=("keep", "system"),
        default="keep",
        help="keep freed memory, as every command here does, or leave it to the system, as Python does (%(default)s)",
    )
    add("--threads", type=int, help="of the CPU (default: the cores that this process may use)")
