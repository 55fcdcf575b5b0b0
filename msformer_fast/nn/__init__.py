"""One module an op: parameters, and a call of the op."""

from msformer_fast.nn.block import EfficientTransformerBlock
from msformer_fast.nn.clustering_loss import ClusteringLoss
from msformer_fast.nn.cross_scale_attention import CrossScaleWindowAttention, TwoWayCrossScaleAttention
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.efficient_attention import EfficientAttention
from msformer_fast.nn.mix_ffn import MixFFN
from msformer_fast.nn.overlap_embedding import OverlapEmbedding
from msformer_fast.nn.patch_embedding import PatchEmbedding
from msformer_fast.nn.published import PublishedEfficientAttention, PublishedMixFFN, PublishedTransformerBlock
from msformer_fast.nn.score_map import ScoreMap
from msformer_fast.nn.stability_loss import SpatialStabilityLoss
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock

__all__ = [
    "ClusteringLoss",
    "CrossScaleWindowAttention",
    "DropIn",
    "EfficientAttention",
    "EfficientTransformerBlock",
    "MixFFN",
    "MonaiSwinBlock",
    "OverlapEmbedding",
    "PatchEmbedding",
    "PublishedEfficientAttention",
    "PublishedMixFFN",
    "PublishedTransformerBlock",
    "ScoreMap",
    "SpatialStabilityLoss",
    "TimmSwinBlock",
    "TwoWayCrossScaleAttention",
]
