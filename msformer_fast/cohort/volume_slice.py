"""One slice of a volume, segmented as an image of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import DivergenceError
from msformer_fast.formats import ImageFile

if TYPE_CHECKING:
    from msformer_fast.segmentation import Segmentation


def segment_slice(
    file: ImageFile,
    index: int,
    pixels: NDArray[np.float32],
    callback: Callable[[Any], Any] | None,
    **settings: Any,
) -> Segmentation | None:
    """What :func:`msformer_fast.segment` finds in the pixels of a slice; ``None`` in one without contrast.

    Raises:
        DivergenceError: a loss became NaN or infinite; names the slice.
    """
    from msformer_fast.segmentation import segment

    if (pixels == pixels[0, 0]).all():
        return None
    try:
        return segment(pixels, modality=file.modality, callback=callback, **settings)
    except DivergenceError as error:
        raise DivergenceError(f"slice {index}: {error}") from error
