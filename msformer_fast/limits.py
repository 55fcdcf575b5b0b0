"""The largest sizes that the Triton kernels take. Larger ones run on another backend, which says why."""

from __future__ import annotations

CLUSTERING_LOSS_CLUSTERS = 1024
CROSS_SCALE_ATTENTION_HEAD_DIM = 128
EFFICIENT_ATTENTION_CHANNELS = 256
MIX_FFN_CHANNELS = 256
MIX_FFN_HIDDEN = 2048
#: Hidden activations of one row of the map: those of a strip are reached by offsets of 32 bits.
MIX_FFN_ROW = 2**26
PATCH_EMBEDDING_CHANNELS = 256
PATCH_EMBEDDING_CLUSTERS = 1024
SCORE_MAP_CHANNELS = 256
#: Of the head that gathers the loss and the labels as it goes.
GUIDED_SCORE_MAP_CLUSTERS = 256
STABILITY_LOSS_CHANNELS = 256
WEIGHTED_LOSSES_CHANNELS = 1024
