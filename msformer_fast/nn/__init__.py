"""One module an op: parameters, and a call of the op."""

from msformer_fast.nn.block import EfficientTransformerBlock
from msformer_fast.nn.clustering_loss import ClusteringLoss
from msformer_fast.nn.cross_scale_attention import CrossScaleWindowAttention, TwoWayCrossScaleAttention
from msformer_fast.nn.efficient_attention import EfficientAttention
from msformer_fast.nn.mix_ffn import MixFFN
from msformer_fast.nn.overlap_embedding import OverlapEmbedding
from msformer_fast.nn.patch_embedding import PatchEmbedding
from msformer_fast.nn.score_map import ScoreMap
from msformer_fast.nn.stability_loss import SpatialStabilityLoss
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock
from msformer_fast.nn.swin_swap import swap_swin_blocks

__all__ = [
    "ClusteringLoss",
    "CrossScaleWindowAttention",
    "EfficientAttention",
    "EfficientTransformerBlock",
    "MixFFN",
    "MonaiSwinBlock",
    "OverlapEmbedding",
    "PatchEmbedding",
    "ScoreMap",
    "SpatialStabilityLoss",
    "TimmSwinBlock",
    "TwoWayCrossScaleAttention",
    "swap_swin_blocks",
]
