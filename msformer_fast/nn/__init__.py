"""One module an op: parameters, and a call of the op.

One layout everywhere: feature maps are channels last, (B, H, W, C), as the ops take them; images and logits are
channels first, (B, C, H, W) and (B, K, H, W), as convolutions and losses of :mod:`torch.nn` take them. Drop-ins for
modules of other libraries keep those libraries' layout.

Parameters are created on ``device`` in ``dtype``, as those of :mod:`torch.nn` are. Hooks of a module run, and so do
those of all that is inside it: see :class:`Fused`.
"""

from msformer_fast.nn.block import EfficientTransformerBlock
from msformer_fast.nn.clustering_loss import ClusteringLoss
from msformer_fast.nn.cross_scale_attention import CrossScaleAttention, TwoMaps, TwoWayCrossScaleAttention
from msformer_fast.nn.drop_in import DropIn
from msformer_fast.nn.efficient_attention import EfficientAttention
from msformer_fast.nn.hooks import Fused
from msformer_fast.nn.mix_ffn import MixFFN
from msformer_fast.nn.overlap_embedding import OverlapEmbedding
from msformer_fast.nn.patch_embedding import PatchEmbedding
from msformer_fast.nn.published import PublishedEfficientAttention, PublishedMixFFN, PublishedTransformerBlock
from msformer_fast.nn.score_map import ScoreMap
from msformer_fast.nn.stability_loss import StabilityLoss
from msformer_fast.nn.swin import MonaiSwinBlock, TimmSwinBlock
from msformer_fast.nn.swin_huggingface import HuggingFaceSwinLayer
from msformer_fast.nn.swin_layer import MonaiSwinLayer
from msformer_fast.nn.swin_microsoft import MicrosoftSwinBlock
from msformer_fast.nn.swin_torchvision import (
    TorchvisionShiftedWindowAttention,
    TorchvisionShiftedWindowAttention3d,
)

__all__ = [
    "ClusteringLoss",
    "CrossScaleAttention",
    "DropIn",
    "EfficientAttention",
    "EfficientTransformerBlock",
    "Fused",
    "HuggingFaceSwinLayer",
    "MicrosoftSwinBlock",
    "MixFFN",
    "MonaiSwinBlock",
    "MonaiSwinLayer",
    "OverlapEmbedding",
    "PatchEmbedding",
    "PublishedEfficientAttention",
    "PublishedMixFFN",
    "PublishedTransformerBlock",
    "ScoreMap",
    "StabilityLoss",
    "TimmSwinBlock",
    "TorchvisionShiftedWindowAttention",
    "TorchvisionShiftedWindowAttention3d",
    "TwoMaps",
    "TwoWayCrossScaleAttention",
]
