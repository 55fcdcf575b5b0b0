"""One public function an op: the documented, checked entry to every backend.

``backend`` of an op or a module says which code runs. ``None``, the default, takes the first of these that can run the
call, on the CPU never ``"triton"``, elsewhere never ``"native"``; a name takes that one, or raises BackendError with
the reason why it cannot.

============= =========================== ========================================================================
backend       package                     runs
============= =========================== ========================================================================
"triton"      kernels                     on a CUDA or HIP device; on the CPU only in Triton's interpreter, for tests
"native"      kernels.native              on the CPU in float32: kernels in C++, compiled when the package is installed;
                                          not under autocast, not in torch.func
"torch"       identities                  anywhere: PyTorch's operators in an order that needs fewer of them. On the
                                          CPU over strips of rows that stay in the cache, with a backward of its own;
                                          elsewhere, under autocast and in torch.func PyTorch differentiates it
"reference"   reference                   anywhere: as the paper writes it; the truth that the others are held to
============= =========================== ========================================================================

``memory`` of an op or a module says what waits for the backward. ``"fast"``, the default, keeps what is dear to
recompute; ``"lean"`` keeps the inputs and recomputes the rest. Each op's docstring names what that is.
"""

from msformer_fast.ops.batch_norm import BatchNorm, BatchStatistics, batch_statistics
from msformer_fast.ops.clustering_loss import Clustering, clustering_loss
from msformer_fast.ops.cross_scale_attention import cross_scale_attention
from msformer_fast.ops.efficient_attention import Attended, efficient_attention
from msformer_fast.ops.guided_score_map import GuidedScores, guided_score_map
from msformer_fast.ops.linear_clustering_loss import linear_clustering_loss
from msformer_fast.ops.mix_ffn import WithStatistics, mix_ffn, mix_ffn_with_statistics
from msformer_fast.ops.overlap_embedding import overlap_embedding
from msformer_fast.ops.patch_embedding import Patches, patch_embedding
from msformer_fast.ops.precision import use_ieee_products
from msformer_fast.ops.score_map import score_map
from msformer_fast.ops.stability_loss import stability_attention, stability_loss
from msformer_fast.ops.weighted_losses import WeightedLosses, weighted_losses

__all__ = [
    "Attended",
    "BatchNorm",
    "BatchStatistics",
    "Clustering",
    "GuidedScores",
    "Patches",
    "WeightedLosses",
    "WithStatistics",
    "batch_statistics",
    "clustering_loss",
    "cross_scale_attention",
    "efficient_attention",
    "guided_score_map",
    "linear_clustering_loss",
    "mix_ffn",
    "mix_ffn_with_statistics",
    "overlap_embedding",
    "patch_embedding",
    "score_map",
    "stability_attention",
    "stability_loss",
    "use_ieee_products",
    "weighted_losses",
]
