"""One public function an op: the documented, checked entry to every backend."""

from msformer_fast.ops.clustering_loss import clustering_loss
from msformer_fast.ops.efficient_attention import efficient_attention
from msformer_fast.ops.linear_clustering_loss import linear_clustering_loss
from msformer_fast.ops.mix_ffn import mix_ffn
from msformer_fast.ops.patch_embedding import patch_embedding
from msformer_fast.ops.score_map import score_map
from msformer_fast.ops.stability_loss import stability_attention, stability_loss

__all__ = [
    "clustering_loss",
    "efficient_attention",
    "linear_clustering_loss",
    "mix_ffn",
    "patch_embedding",
    "score_map",
    "stability_attention",
    "stability_loss",
]
