"""What a target looks like, as normal priors of its features, and how well a candidate agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msformer_fast.foreground.candidates import Candidate


def normal_term(difference: float, deviation: float) -> float:
    """Logarithm of the normal density but for its constant: minus half the squared deviation."""
    return -0.5 * (difference / deviation) ** 2


@dataclass(frozen=True)
class Prior:
    """A target by name.

    Attributes:
        expected: mean and standard deviation of features.
        contrast: gain for each unit of contrast of the outline.
    """

    expected: Mapping[str, tuple[float, float]]
    contrast: float

    def terms(self, candidate: Candidate) -> dict[str, float]:
        """What each feature adds to the score: minus half its squared deviation, and the gain of contrast."""
        values = candidate.features
        terms = {name: normal_term(values[name] - mean, deviation) for name, (mean, deviation) in self.expected.items()}
        return terms | {"contrast": self.contrast * values["contrast"]}


# Means and deviations were taken from every other image, by name, of the dermoscopic and chest images that the
# documentation reports on; the images between them were not looked at. Deviations are wider than those found.
LESION = Prior(
    expected={
        "area": (-1.4, 0.9),
        "offset": (0.0, 0.2),
        "solidity": (1.0, 0.08),
        "border": (0.0, 0.5),
        "frame": (0.0, 0.3),
    },
    contrast=5.0,
)
LUNG = Prior(
    expected={
        "area": (-2.0, 0.35),
        "row": (0.42, 0.1),
        "height": (0.57, 0.13),
        "width": (0.31, 0.05),
        "solidity": (0.9, 0.04),
        "border": (0.0, 0.1),
        "frame": (0.0, 0.1),
    },
    contrast=10.0,
)
#: Distance of a lung's centroid from the image's middle, in image widths.
LUNG_DISTANCE = (0.22, 0.04)
#: Standard deviations of what two lungs of one chest differ by: centroid height, logarithm of area.
LUNG_PAIR = {"row": 0.05, "area": 0.3}
