"""The table of ops under the contract: one row an op. A new op is a row here, and a file for its special cases."""

from __future__ import annotations

from msformer_fast import ops  # noqa: F401, for rows that call an op themselves
from msformer_fast.kernels.native.library import why_not_built
from tests.ops import draws
from tests.ops.op import Op

#: The CPU kernels, where they were compiled.
NATIVE = ("native",) if why_not_built() is None else ()
EVERY = ("triton", *NATIVE, "torch")

OPS = {
    op.row: op
    for op in (
        Op(
            "clustering_loss",
            draws.call_clustering_loss,
            draws.draw_logits,
            {
                "paper": {"B": 1, "K": 100, "H": 9, "W": 17},
                "channels last": {"B": 2, "K": 130, "H": 5, "W": 7, "cluster_dim": -1},
                "sum": {"B": 2, "K": 7, "H": 8, "W": 16, "reduction": "sum"},
                "none": {"B": 3, "K": 2, "H": 3, "W": 5, "reduction": "none"},
                "many": {"B": 1, "K": 1000, "H": 3, "W": 5, "cluster_dim": -1, "reduction": "none"},
                "saturated": {"B": 1, "K": 33, "H": 5, "W": 9, "spread": 100.0},
                "empty": {"B": 0, "K": 5, "H": 3, "W": 5, "reduction": "sum"},
            },
            backends=EVERY,
            tiny={"B": 2, "K": 3, "H": 3, "W": 5, "ties": False},  # a tie has no derivative
            other=({"B": 3, "K": 3, "H": 7, "W": 9}, {"B": 4, "K": 3, "H": 5, "W": 11}),
            options=("reduction", "cluster_dim"),
        ),
        Op(
            "linear_clustering_loss",
            draws.call_linear_clustering_loss,
            draws.draw_projection,
            {
                "paper": {"B": 1, "K": 100, "D": 100, "H": 5, "W": 7},
                "no bias": {"B": 2, "K": 7, "D": 20, "H": 3, "W": 5, "with_bias": False, "reduction": "sum"},
                "wide": {"B": 1, "K": 200, "D": 130, "H": 3, "W": 11, "reduction": "none"},
            },
            backends=EVERY,
            tiny={"B": 1, "K": 3, "D": 5, "H": 3, "W": 5},
            other=({"B": 2, "K": 3, "D": 5, "H": 7, "W": 9}, {"B": 3, "K": 3, "D": 5, "H": 5, "W": 11}),
            options=("reduction",),
        ),
        Op(
            "stability_loss",
            draws.call_stability_loss,
            draws.draw_pairs,
            {
                "paper": {"B": 1, "T": 64, "C": 100},
                "odd": {"B": 2, "T": 37, "C": 7, "scale": 3.0},
                "one patch": {"B": 3, "T": 1, "C": 12},
                "wide": {"B": 1, "T": 9, "C": 256, "scale": 20.0},
            },
            backends=EVERY,
            tiny={"B": 2, "T": 3, "C": 5},
            other=({"B": 3, "T": 5, "C": 5}, {"B": 4, "T": 7, "C": 5}),
            options=("scale",),
        ),
        Op(
            "weighted_losses",
            draws.call_weighted_losses,
            draws.draw_contexts,
            {
                "paper": {"B": 1, "Ck": 100, "Cv": 100},
                "odd": {"B": 3, "Ck": 37, "Cv": 7, "weights": (0.3, 2.0, 0.7)},
                "two heads": {"B": 2, "Ck": 20, "Cv": 130, "eps": 0.5},
                "one row": {"B": 1, "Ck": 1, "Cv": 3},
            },
            tiny={"B": 2, "Ck": 3, "Cv": 5},
            other=({"B": 3, "Ck": 5, "Cv": 5}, {"B": 4, "Ck": 7, "Cv": 5}),
            differentiable=4,
            options=("weights", "eps"),
            backends=("triton",),  # the others are the reference
        ),
        Op(
            "patch_embedding",
            draws.call_patch_embedding,
            draws.draw_patches,
            {
                "patch 4": {"B": 2, "K": 7, "H": 14, "W": 19, "C": 12, "patch": 4},
                "patch 8": {"B": 1, "K": 20, "H": 17, "W": 9, "C": 100, "patch": 8},
                "patch 3": {"B": 1, "K": 130, "H": 7, "W": 8, "C": 7, "patch": 3},
            },
            backends=EVERY,
            tiny={"B": 1, "K": 3, "H": 5, "W": 7, "C": 4, "patch": 2},
            other=(
                {"B": 2, "K": 3, "H": 7, "W": 9, "C": 4, "patch": 2},
                {"B": 3, "K": 3, "H": 9, "W": 11, "C": 4, "patch": 2},
            ),
            differentiable=2,
            options=("patch",),
            slow=("patch 8",),
        ),
        Op(
            "overlap_embedding",
            draws.call_overlap_embedding,
            draws.draw_image,
            {
                "paper": {"B": 1, "N": 3, "H": 9, "W": 17, "C": 100, "stride": 1},
                "coarse": {"B": 2, "N": 1, "H": 14, "W": 33, "C": 7, "stride": 2},
                "wide": {"B": 1, "N": 5, "H": 13, "W": 130, "C": 130, "stride": 1, "with_bias": False},
                "stride 3": {"B": 3, "N": 2, "H": 7, "W": 8, "C": 12, "stride": 3},
                "one pixel": {"B": 2, "N": 3, "H": 1, "W": 1, "C": 20, "stride": 2},
                "empty": {"B": 0, "N": 3, "H": 5, "W": 4, "C": 6, "stride": 1},
            },
            backends=("triton", *NATIVE),  # the others are PyTorch's convolution
            tiny={"B": 2, "N": 2, "H": 3, "W": 5, "C": 4, "stride": 2},
            other=(
                {"B": 3, "N": 2, "H": 7, "W": 9, "C": 4, "stride": 2},
                {"B": 4, "N": 2, "H": 5, "W": 11, "C": 4, "stride": 2},
            ),
            options=("stride",),
        ),
        Op(
            "efficient_attention",
            draws.call_efficient_attention,
            draws.draw_attention,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100},
                "heads": {"B": 2, "H": 7, "W": 5, "C": 12, "Ck": 10, "Cv": 14, "heads": 2},
                "bare": {"B": 2, "H": 6, "W": 3, "C": 7, "norm": False, "residual": False, "with_bias": False},
                "sharp": {"B": 1, "H": 8, "W": 11, "C": 20, "spread": 12.0},
                "lean": {"B": 1, "H": 5, "W": 9, "C": 130, "memory": "lean"},
                "one row": {"B": 3, "H": 1, "W": 9, "C": 10},
                "batch norm": {"B": 2, "H": 5, "W": 7, "C": 20, "heads": 2, "batch_norm": True},
                "bare batch norm": {
                    **{"B": 1, "H": 6, "W": 5, "C": 7, "norm": False, "residual": False, "with_bias": False},
                    **{"batch_norm": True},
                },
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6},
            },
            backends=EVERY,
            tiny={"B": 2, "H": 3, "W": 5, "C": 4},
            other=({"B": 3, "H": 7, "W": 9, "C": 4}, {"B": 4, "H": 5, "W": 11, "C": 4}),
            differentiable=2,
            options=("heads", "norm", "residual", "memory", "eps"),
            # Saturated, the sums of the keys' gradients cancel: 1.1 to 2.4 times was seen, both errors about 2e-6.
            # Where a mean is hundreds of times the spread, either error is that of one rounding, and may be near 0.
            luck={"sharp": 3.0, "batch norm": 3.0, "bare batch norm": 3.0},
            slow=("lean",),
        ),
        Op(
            "cross_scale_attention",
            draws.call_cross_scale_attention,
            draws.draw_windows,
            {
                "Swin, timm": {
                    **{"B": 2, "H": 7, "W": 9, "d": 20, "window": (4, 3), "shift": (2, 1), "packed": True},
                    **{"outside": "pad", "order": "roll_pad", "seam": -1.5, "scale": 0.4},
                },
                "half": {
                    "B": 1,
                    "H": 9,
                    "W": 7,
                    "Hk": 5,
                    "Wk": 4,
                    "d": 10,
                    "window": (4, 6),
                    "shift": 2,
                    "halo": (1, 2),
                },
                "Swin, MONAI": {
                    "B": 1,
                    "H": 9,
                    "W": 8,
                    "d": 25,
                    "window": 7,
                    "shift": 3,
                    "packed": True,
                    "outside": "pad",
                },
                "twice, halo": {
                    **{
                        "B": 1,
                        "H": 4,
                        "W": 5,
                        "Hk": 7,
                        "Wk": 9,
                        "d": 16,
                        "window": (2, 4),
                        "shift": (1, 2),
                        "halo": (3, 1),
                    },
                    **{"outside": "pad", "table": False, "dense": True},
                },
                "rolled first": {
                    **{"B": 2, "H": 5, "W": 11, "Hk": 3, "Wk": 6, "heads": 1, "d": 8, "window": 4, "shift": 2},
                    **{"order": "roll_pad", "table": False},
                },
                "saturated": {"B": 1, "H": 8, "W": 8, "d": 33, "window": 8, "spread": 4.0, "heads": 1},
                "quarter": {"B": 1, "H": 10, "W": 16, "Hk": 3, "Wk": 4, "d": 8, "window": (8, 4), "shift": (4, 0)},
                "four times": {
                    "B": 1,
                    "H": 3,
                    "W": 2,
                    "Hk": 12,
                    "Wk": 8,
                    "d": 10,
                    "window": 2,
                    "shift": 1,
                    "scale": 2.0,
                },
                "wide": {"B": 1, "H": 12, "W": 13, "heads": 1, "d": 128, "window": 12, "table": False},
                "a row": {"B": 2, "W": 19, "d": 8, "window": 6, "shift": 3, "packed": True},
                "empty": {"B": 0, "H": 5, "W": 4, "d": 8, "window": 2},
            },
            backends=EVERY,
            # One window, whose scores are so far apart that a few rows of 64 decide: a draw in ten is beyond 1.5 times.
            luck={"saturated": 3.0},
            tiny={
                "B": 2,
                "H": 5,
                "W": 7,
                "Hk": 3,
                "Wk": 4,
                "heads": 1,
                "d": 4,
                "window": 4,
                "shift": 2,
                "outside": "pad",
            },
            other=(
                {
                    "B": 3,
                    "H": 7,
                    "W": 9,
                    "Hk": 4,
                    "Wk": 5,
                    "heads": 1,
                    "d": 4,
                    "window": 4,
                    "shift": 2,
                    "outside": "pad",
                },
                {
                    "B": 4,
                    "H": 9,
                    "W": 11,
                    "Hk": 5,
                    "Wk": 6,
                    "heads": 1,
                    "d": 4,
                    "window": 4,
                    "shift": 2,
                    "outside": "pad",
                },
            ),
            options=("window", "halo", "shift", "scale", "outside", "order", "seam"),
            plain=("torch",),
            slow=("wide", "twice, halo"),
        ),
        Op(
            "cross_scale_attention",
            draws.call_cross_scale_attention,
            draws.draw_windows,
            {
                "Swin UNETR": {
                    **{"B": 1, "D": 7, "H": 6, "W": 5, "d": 8, "window": (5, 4, 4), "shift": (2, 1, 2), "packed": True},
                    **{"outside": "pad", "seam": -1.5},
                },
                "half, twice": {
                    **{"B": 2, "D": 4, "H": 6, "W": 5, "Dk": 4, "Hk": 3, "Wk": 9, "d": 10, "heads": 1},
                    **{"window": 2, "shift": (1, 0, 1), "halo": (1, 0, 1)},
                },
                "small windows": {
                    **{"B": 1, "D": 2, "H": 5, "W": 4, "d": 16, "window": 2, "shift": 1, "table": False, "dense": True},
                    **{"order": "roll_pad"},
                },
                "empty": {"B": 0, "D": 3, "H": 5, "W": 4, "d": 8, "window": 2},
            },
            # Divisible alike, axis by axis: what is padded is compiled anew where nothing was.
            tiny={"B": 2, "D": 3, "H": 5, "W": 4, "heads": 1, "d": 4, "window": 2, "shift": 1, "outside": "pad"},
            other=(
                {"B": 3, "D": 5, "H": 7, "W": 8, "heads": 1, "d": 4, "window": 2, "shift": 1, "outside": "pad"},
                {"B": 4, "D": 7, "H": 3, "W": 6, "heads": 1, "d": 4, "window": 2, "shift": 1, "outside": "pad"},
            ),
            options=("window", "halo", "shift", "scale", "outside", "order", "seam"),
            plain=("torch",),
            backends=EVERY,
            of="volumes",
        ),
        Op(
            "mix_ffn",
            draws.call_mix_ffn,
            draws.draw_ffn,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100, "D": 400},
                "batch": {"B": 2, "H": 7, "W": 5, "C": 7, "D": 30},
                "inner tiles": {"B": 1, "H": 18, "W": 34, "C": 7, "D": 40},
                "lean": {"B": 2, "H": 6, "W": 4, "C": 12, "D": 20, "memory": "lean"},
                "SegFormer": {"B": 1, "H": 8, "W": 3, "C": 9, "D": 36, "inner_norm": False, "inner_skip": False},
                "bare": {
                    **{"B": 1, "H": 5, "W": 6, "C": 8, "D": 6, "norm": False, "residual": False, "with_bias": False},
                    **{"inner_norm": False},
                },
                "one pixel": {"B": 3, "H": 1, "W": 1, "C": 6, "D": 10},
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6, "D": 10},
            },
            backends=EVERY,
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "D": 6},
            other=({"B": 3, "H": 7, "W": 9, "C": 4, "D": 6}, {"B": 4, "H": 5, "W": 11, "C": 4, "D": 6}),
            options=("norm", "inner_norm", "inner_skip", "residual", "memory", "eps"),
        ),
        Op(
            "score_map",
            draws.call_score_map,
            draws.draw_head,
            {
                "paper": {"B": 1, "H": 9, "W": 17, "C": 100, "K": 100},
                "even": {"B": 2, "H": 8, "W": 6, "C": 7, "K": 5},
                "one pixel": {"B": 3, "H": 1, "W": 1, "C": 6, "K": 9},
                "empty": {"B": 0, "H": 3, "W": 5, "C": 6, "K": 9},
                "wide": {"B": 1, "H": 6, "W": 5, "C": 130, "K": 140},
                "batch norm": {"B": 2, "H": 7, "W": 8, "C": 20, "K": 33, "batch_norm": True},
            },
            backends=EVERY,
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "K": 3, "batch_norm": True},
            other=({"B": 3, "H": 7, "W": 9, "C": 4, "K": 3}, {"B": 4, "H": 5, "W": 11, "C": 4, "K": 3}),
            slow=("wide",),
        ),
        Op(
            "guided_score_map",
            draws.call_guided_score_map,
            draws.draw_guided,
            {
                "even": {"B": 2, "H": 8, "W": 6, "C": 17, "K": 5, "E": 9, "patch": 2},
                "paper": {"B": 1, "H": 7, "W": 9, "C": 100, "K": 100, "patch": 4, "batch_norm": True},
                "saturated": {"B": 1, "H": 7, "W": 5, "C": 20, "K": 33, "patch": 3, "spread": 40.0},
                "wide": {"B": 1, "H": 5, "W": 6, "C": 60, "K": 140, "patch": 2, "batch_norm": True},
            },
            tiny={"B": 2, "H": 3, "W": 5, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
            other=(
                {"B": 3, "H": 7, "W": 9, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
                {"B": 4, "H": 5, "W": 11, "C": 4, "K": 3, "patch": 2, "batch_norm": True},
            ),
            differentiable=4,
            options=("patch",),
            backends=("triton", *NATIVE),  # the others, "native" too, are the three ops, one after the other
            slow=("paper", "wide"),
            of_rounded=(1,),
        ),
    )
}
