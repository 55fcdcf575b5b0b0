"""What kind of image it is: coloured or grey, and if grey an axial CT slice or a radiograph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msformer_fast.foreground.evidence import Image, ends_of, grey_channel, image_evidence, outline_of
from msformer_fast.foreground.lungs_ct import at_best_level

#: Likeness from which an image is a CT slice. Of the images that the rules were chosen on, slices have 0.20 and more,
#: radiographs 0.07 and less, drawn ones up to 0.10.
CT_SLICE = 0.15
#: What made an image, as far as the rules care.
MODALITIES = ("ct", "xray")
# How much it counts that grey varies in the air and in the tissue around.
_EVENNESS = 0.25
# Share of the image under which what was found is a speck of noise.
_LEAST_AIR = 0.005
# Pixels next to the outline that belong to neither side, and the width of the tissue around.
_RIM, _RING = 1.5, 5.0
# Mean channel range (max - min) above which an image is called coloured: 0 in a grey scan, little in a tinted
# one, more than 0.1 in dermoscopic images.
_COLOURED = 0.05


@dataclass(frozen=True)
class Kind:
    """What is known of an image before anything is looked for in it.

    Attributes:
        colour: mean channel range (max - min).
        likeness: see :func:`ct_likeness`; 0 of a coloured image.
        modality: what made it, a name in :data:`MODALITIES`, or ``None`` where only the image tells.
        contrast: spread of its values, all but the outermost half a percent at each end.
    """

    colour: float
    likeness: float
    modality: str | None = None
    contrast: float = 1.0

    @property
    def coloured(self) -> bool:
        return self.colour > _COLOURED

    @property
    def tinted(self) -> bool:
        """Whether it is coloured for its contrast: also one that has lost both, and a grey one with a tint."""
        return self.colour > _COLOURED * max(self.contrast, 1e-6)

    @property
    def looks_like_ct(self) -> bool:
        return self.likeness >= CT_SLICE

    @property
    def is_ct(self) -> bool:
        """By what made the image where that is known, else by its looks."""
        return self.looks_like_ct if self.modality is None else self.modality == "ct"

    @property
    def chest(self) -> str:
        """Why it is taken for a CT slice or a radiograph, in words."""
        if self.modality is not None:
            return "the file says that it is " + ("CT" if self.modality == "ct" else "a radiograph")
        if self.looks_like_ct:
            return f"air in it is even and sharply bounded, as in CT ({self.likeness:.2f}, from {CT_SLICE:g} on)"
        return f"what is dark in it is uneven or blurred, as in a radiograph ({self.likeness:.2f}, under {CT_SLICE:g})"


def kind_of(image: Image, modality: str | None = None) -> Kind:
    """Look at an image, (H, W, C) in [0, 1]."""
    colour = float(np.ptp(image, axis=2).mean())
    low, high = ends_of(image)
    likeness = 0.0 if colour > _COLOURED else ct_likeness(grey_channel(image))
    return Kind(colour, likeness, modality, high - low)


def ct_likeness(grey: Image) -> float:
    """How sharp and even what looks like air inside of a body is, (H, W) in [0, 1]; 0 where nothing does.

    In a slice, air meets tissue in a step as sharp as the pixels allow, and is even; in a radiograph, lungs lie behind
    ribs and before the back, and their outlines are slopes. The number is the gradient on the outline of the best level
    set, in steps a pixel of the judged size, less a quarter of the spreads inside and around it (between the
    quartiles), in steps.
    """
    from scipy import ndimage

    evidence = image_evidence(grey)
    found = at_best_level(evidence)
    if found is None or found.mask.mean() < _LEAST_AIR:
        return 0.0
    mask = found.mask
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    within, around = evidence.channel[inside > _RIM], evidence.channel[(outside > _RIM) & (outside < _RING)]
    if not (within.size and around.size):
        return 0.0
    step = float(np.median(around) - np.median(within))
    if step <= 0:
        return 0.0
    spread = sum(float(np.subtract(*np.percentile(side, [75, 25]))) for side in (within, around))
    return (float(evidence.edges[outline_of(mask)].mean()) - _EVENNESS * spread) / step
