"""Lungs in a volume of CT: what was found slice by slice, held against the slices above and below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RULE = "lungs-ct"
# Parts in space of less than this share of the largest are no lung: gas of stomach and bowel, the windpipe above.
_SHARE = 0.05
# Slices that a volume has at least.
_FEWEST = 3


def is_lung_volume(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether most slices with something in them were segmented by the rule for lungs on CT."""
    rules = [record["foreground"]["rule"] for record in records if "foreground" in record]
    return len(rules) >= _FEWEST and 2 * rules.count(RULE) > len(rules)


def joined_lungs(masks: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Masks (F, H, W) without the parts that belong to no lung, and how many slices lost something by it.

    A lung goes on from slice to slice: in space, parts are joined where they overlap in neighbouring slices. Those of
    less than a twentieth of the largest are left out. A slice may be left without a mask.
    """
    from scipy import ndimage

    parts, _ = ndimage.label(masks)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = np.isin(parts, np.flatnonzero((sizes > 0) & (sizes >= _SHARE * sizes.max())))
    return kept, int((kept != masks).any(axis=(1, 2)).sum())
