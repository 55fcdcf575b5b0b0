"""The kinds of modules that can be swapped from the start."""

from __future__ import annotations

from msformer_fast.swaps.kinds import SwapKind
from msformer_fast.swaps.own import OWN
from msformer_fast.swaps.published import ATTENTION, BLOCK, FEED_FORWARD
from msformer_fast.swaps.swin import MONAI, TIMM

#: The block before its parts.
BUILT_IN: tuple[SwapKind, ...] = (OWN, BLOCK, ATTENTION, FEED_FORWARD, TIMM, MONAI)
