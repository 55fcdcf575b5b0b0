"""Segment a drawn lesion and a drawn chest, score them, and look at masks, clusters and losses.

    python examples/segment_and_look.py [FOLDER]

writes ``lesion.png``, ``chest.png`` and, where matplotlib is installed, ``history.svg`` into FOLDER (``looked``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import msformer_fast as mf
from msformer_fast.images import write_png
from msformer_fast.overlay import panel


def segment(kind: str) -> tuple[mf.Segmentation, mf.Phantom]:
    """A drawn image of 129 x 129 pixels, segmented at 65, which takes seconds on one core."""
    drawn = mf.phantom.make(kind, (129, 129), seed=1)  # image (H, W, 3) float32 in [0, 1], mask (H, W) bool
    return mf.segment(drawn.image, size=65, patience=6, seed=0), drawn


def plot(results: dict[str, mf.Segmentation], path: Path) -> None:
    """Clusters left and total loss of every iteration, side by side."""
    import matplotlib

    from msformer_fast.look import PALETTE, plain_plot

    matplotlib.rcParams.update(plain_plot())
    figure = matplotlib.figure.Figure(figsize=(7.5, 3), layout="constrained")
    clusters, loss = figure.subplots(1, 2)
    for (kind, result), colour, marker in zip(
        results.items(), (PALETTE["blue"], PALETTE["vermilion"]), "os", strict=True
    ):
        steps = [each.index for each in result.history]
        clusters.plot(steps, [each.label_count for each in result.history], color=colour, marker=marker, label=kind)
        loss.plot(steps, [each.total for each in result.history], color=colour, marker=marker, label=kind)
    clusters.set(title="Clusters that are left", xlabel="iteration", yscale="log")
    clusters.set_yticks([5, 10, 20, 50, 100], labels=["5", "10", "20", "50", "100"])
    clusters.minorticks_off()
    loss.set(title="Total loss", xlabel="iteration")
    clusters.legend()
    figure.savefig(path, metadata={"Date": None})


def main(folder: str = "looked") -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for kind in ("lesion", "chest"):
        result, drawn = segment(kind)
        results[kind] = result
        dice = mf.metrics.score_blind(result.mask, drawn.mask).dice
        print(f"{kind}: Dice {dice:.3f}, confidence {result.foreground.confidence:.2f}, {result.foreground.reason}")
        write_png(out / f"{kind}.png", panel(drawn.image, result.labels, result.mask))
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        print("no plot: pip install matplotlib")
    else:
        plot(results, out / "history.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
