"""What the prompt rule looks at: what clusters and image say of every pixel, and the parts that they make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.candidates import measure, moved_to_edges, parts_of
from msformer_fast.foreground.evidence import (
    SMOOTHING,
    SOFT_SHARE,
    Evidence,
    Image,
    Mask,
    cluster_shares,
    contrast_of,
    darkness_channel,
    judged_size,
    outline_of,
    rescale,
)

# Slow changes of grey that are taken away in the levelled map: their size in pixels, and how much of them.
_SLOW, _LEVELLED = 12.0, 0.9
# The value of a click is the median over a square of this half side.
_CLICK = 2
_LEVELS = 14
_CUTS = (0, 1, 2, 3)
# Parts are nearly alike whose areas differ by this part, and whose centroids by so many pixels.
_ALIKE_AREA, _ALIKE_PLACE = 0.01, 0.25
_AREAS = (0.004, 0.95)


@dataclass(frozen=True, eq=False)
class Looks:
    """The maps of an image on the grid on which parts are made.

    Attributes:
        mixed: (h, w, C), half the expected colour of a pixel's cluster, half its own.
        dark, light: evidence in which dark, and light, things have low values.
    """

    mixed: Image
    dark: Evidence
    light: Evidence

    @property
    def shape(self) -> tuple[int, int]:
        return self.dark.channel.shape[0], self.dark.channel.shape[1]


@dataclass(frozen=True, eq=False)
class Part:
    """One connected mask (h, w) with its holes filled, and what it looks like.

    ``features``: of :func:`msformer_fast.foreground.candidates.measure`; and ``edge``, the mean slope along the outline
    in units of the image's contrast; ``mean``, its value in the mixed map, likewise.
    """

    mask: Mask
    features: dict[str, float]


def look(scores: Sequence[NDArray[Any] | None], image: Image) -> Looks:
    """The maps of an image (H, W, C) from the scores (R, H, W) of each run; of a run without, from the image alone."""
    from scipy import ndimage

    shape = judged_size(image.shape)
    colour = _at(image, shape)
    smooth = ndimage.gaussian_filter(colour, (SMOOTHING, SMOOTHING, 0))
    expected = [smooth if each is None else _at(expected_colour(each, image), shape) for each in scores]
    mixed = SOFT_SHARE * np.mean(expected, axis=0) + (1 - SOFT_SHARE) * smooth
    channel, soft = darkness_channel(smooth), darkness_channel(mixed)
    edges = ndimage.gaussian_gradient_magnitude(darkness_channel(colour), SMOOTHING)
    nowhere = np.zeros(shape, dtype=bool)
    dark = Evidence(soft, soft, channel, edges, nowhere, contrast_of(channel))
    return Looks(mixed, dark, replace(dark, soft=1 - soft, mixed=1 - soft, channel=1 - channel))


def expected_colour(scores: NDArray[Any], image: Image) -> Image:
    """The mean colour of the clusters that a pixel may belong to, (H, W, C), by the softmax over their scores."""
    shares = cluster_shares(scores)
    colours = np.einsum("rhw,hwc->rc", shares, image) / shares.sum(axis=(1, 2))[:, None]
    return np.asarray(np.einsum("rhw,rc->hwc", shares, colours))


def parts_around(looks: Looks, click: tuple[int, int], allowed: Mask | None) -> list[Part]:
    """Parts of all level sets that a clicked pixel (row, column) may belong to, and others of the same levels.

    Levels go from the click's value away from it: of the map as it is, where the object is dark or light; of the map
    without its slow changes; and of the distance to the click's colour.
    """
    window = tuple(slice(max(0, at - _CLICK), at + _CLICK + 1) for at in click)
    clicked = np.median(looks.mixed[window].reshape(-1, looks.mixed.shape[2]), axis=0)
    away = np.sqrt(((looks.mixed - clicked) ** 2).sum(axis=2))
    found = _Found(looks)
    for values in (looks.dark.mixed, _levelled(looks), looks.light.mixed, away):
        own = float(np.median(values[window]))
        beyond = values[(values > own) if allowed is None else (values > own) & allowed]
        if beyond.size:
            found.add(values, np.quantile(beyond, np.linspace(0.0, 0.95, _LEVELS)), allowed)
    return found.parts


def parts_in(looks: Looks, allowed: Mask) -> list[Part]:
    """Parts of all level sets in a box, whether dark or light."""
    found = _Found(looks)
    for values in (looks.dark.mixed, _levelled(looks), looks.light.mixed):
        found.add(values, np.quantile(values[allowed], np.linspace(0.04, 0.9, _LEVELS)), allowed)
    return found.parts


def _levelled(looks: Looks) -> Image:
    """The darkness without its slow changes."""
    from scipy import ndimage

    soft = looks.dark.mixed
    return np.asarray(soft - _LEVELLED * ndimage.gaussian_filter(soft, _SLOW))


class _Found:
    """Parts, no two of them nearly alike: of those the first."""

    def __init__(self, looks: Looks) -> None:
        self.parts: list[Part] = []
        self._looks = looks
        self._seen: set[tuple[int, ...]] = set()

    def add(self, values: Image, levels: NDArray[np.float64], allowed: Mask | None) -> None:
        """The connected parts of the level sets, as they are and cut free of narrow bridges, holes filled."""
        for level in np.unique(levels):
            for mask in parts_of(values <= level if allowed is None else (values <= level) & allowed, _CUTS, _AREAS):
                self._keep(mask, allowed)

    def _keep(self, mask: Mask, allowed: Mask | None) -> None:
        """The part as it is, and with its outline moved to the nearest edge."""
        if not self._is_new(mask):
            return
        self.parts.append(described(mask, self._looks))
        moved = moved_to_edges(mask, self._looks.dark.edges)
        if allowed is not None:
            moved &= allowed
        if moved.any() and self._is_new(moved):
            self.parts.append(described(moved, self._looks))

    def _is_new(self, mask: Mask) -> bool:
        rows, columns = mask.sum(axis=1), mask.sum(axis=0)
        area = rows.sum()
        row, column = rows @ np.arange(rows.size) / area, columns @ np.arange(columns.size) / area
        key = (round(np.log(area) / _ALIKE_AREA), round(row / _ALIKE_PLACE), round(column / _ALIKE_PLACE))
        new = key not in self._seen
        self._seen.add(key)
        return new


def described(mask: Mask, looks: Looks) -> Part:
    """The part with what it looks like. Its contrast has no sign: it is lighter or darker than what is around it."""
    evidence = looks.dark
    measured = measure(mask, evidence)
    outline = outline_of(mask)
    measured["contrast"] = abs(measured["contrast"])
    measured["edge"] = float(evidence.edges[outline].mean() / evidence.contrast)
    measured["mean"] = float(evidence.mixed[mask].mean() / evidence.contrast)
    return Part(mask, measured)


def _at(image: Image, shape: tuple[int, int]) -> Image:
    return np.stack([rescale(channel, shape) for channel in np.moveaxis(image, 2, 0)], axis=2)
