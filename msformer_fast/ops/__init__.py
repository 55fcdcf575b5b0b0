"""One public function an op: the documented, checked entry to every backend."""

from msformer_fast.ops.batch_norm import BatchNorm, BatchStatistics, batch_statistics
from msformer_fast.ops.clustering_loss import Clustering, clustering_loss
from msformer_fast.ops.cross_scale_attention import cross_scale_attention
from msformer_fast.ops.efficient_attention import Attended, efficient_attention
from msformer_fast.ops.guided_score_map import GuidedScores, guided_score_map
from msformer_fast.ops.linear_clustering_loss import linear_clustering_loss
from msformer_fast.ops.mix_ffn import WithStatistics, mix_ffn, mix_ffn_with_statistics
from msformer_fast.ops.patch_embedding import Patches, patch_embedding
from msformer_fast.ops.score_map import score_map
from msformer_fast.ops.stability_loss import stability_attention, stability_loss

__all__ = [
    "Attended",
    "BatchNorm",
    "BatchStatistics",
    "Clustering",
    "GuidedScores",
    "Patches",
    "WithStatistics",
    "batch_statistics",
    "clustering_loss",
    "cross_scale_attention",
    "efficient_attention",
    "guided_score_map",
    "linear_clustering_loss",
    "mix_ffn",
    "mix_ffn_with_statistics",
    "patch_embedding",
    "score_map",
    "stability_attention",
    "stability_loss",
]
