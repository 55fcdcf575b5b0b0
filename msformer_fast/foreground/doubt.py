"""Images that no rule was made for: their masks may agree with each other and be wrong all the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msformer_fast.foreground.evidence import Image, ends_of, judged_size, rescale
from msformer_fast.foreground.kind import Kind

#: Part of the confidence that is left where an image, or what was chosen in it, is unlike what the rule was made for.
LEFT = 0.5
# Shares from which an image is strange, far beyond those of the images that the priors were taken from: of two tones in
# it (0.5 at most there; 0.7 in CT slices of eight tones), of one light colour along the border (0.3), of contrast
# that a little smoothing takes away (0.2).
_TWO_TONES = 0.92
_ONE_COLOUR = 0.6
_GRAIN = 0.5
# Standard deviation in pixels of that smoothing, at the size where candidates are judged.
_SMOOTHING = 2.0
# Values this close, in [0, 1], are one tone, one colour. A border up to here is dark, which the rules know: black, or
# the air around a body on CT, which wide windows show grey; up to that part of the image's own spread, too.
_TONE, _COLOUR, _DARK = 3 / 255, 6 / 255, 0.3
_LEVELS = 256
# Least spread of grey levels for which tones and colours are that close; where contrast was lost they are nearer to
# each other, down to a spread that is a few levels of eight bits.
_SPREAD, _LEAST_SPREAD = 0.4, 0.02


def strangeness(image: Image) -> str:
    """What tells an image (H, W, C) from all that a rule was made for, in words; empty for others."""
    image = _with_usual_contrast(image)
    share = _two_tones(image.mean(axis=2))
    if share >= _TWO_TONES:
        return f"two tones make up {100 * share:.0f} % of the image, as of a drawing"
    share = _light_border(image)
    if share >= _ONE_COLOUR:
        return f"{100 * share:.0f} % of the image border are of one light colour, as of a page"
    share = _grain(image.mean(axis=2))
    if share >= _GRAIN:
        return f"{100 * share:.0f} % of the contrast is grain, as of noise, texture or text"
    return ""


def misfit(rule: str, kind: Kind) -> str:
    """Why an image is none that a rule was made for, in words; empty where it may be one.

    A file may say that it is CT and show something else than lungs: then its looks count.
    """
    if rule == "lesion":
        return "" if kind.tinted else "the rule was made for coloured images of skin, and this one is grey"
    if kind.coloured:
        return "the rule was made for grey images of chests, and this one is coloured"
    if rule == "lungs-ct" and not kind.looks_like_ct:
        return f"the rule was made for CT slices, and this looks like none (likeness {kind.likeness:.2f})"
    if rule == "lungs-xray" and kind.looks_like_ct:
        return f"the rule was made for radiographs, and this looks like a CT slice (likeness {kind.likeness:.2f})"
    return ""


def _with_usual_contrast(image: Image) -> Image:
    """An image (H, W, C) whose grey levels lie close together, spread about their middle; any other as it is."""
    low, high = ends_of(image)
    spread, middle = max(high - low, _LEAST_SPREAD), 0.5 * (low + high)
    if spread >= _SPREAD:
        return image
    return np.clip(middle * (1 - _SPREAD / spread) + image * (_SPREAD / spread), 0, 1)


def _two_tones(grey: Image) -> float:
    """Share of the two commonest tones of (H, W)."""
    counts = np.bincount(np.rint(grey * (_LEVELS - 1)).astype(np.intp).ravel(), minlength=_LEVELS).astype(np.float64)
    reach = round(_TONE * (_LEVELS - 1))
    shares = 0.0
    for _ in range(2):
        middle = int(np.convolve(counts, np.ones(2 * reach + 1), "same").argmax())
        tone = slice(max(0, middle - reach), middle + reach + 1)
        shares += counts[tone].sum()
        counts[tone] = 0
    return float(shares / grey.size)


def _grain(grey: Image) -> float:
    """Share of the variance of (H, W) that smoothing takes away."""
    from scipy import ndimage

    small = rescale(grey, judged_size(grey.shape))
    variance = float(small.var())
    return 0.0 if variance < 1e-9 else 1 - float(ndimage.gaussian_filter(small, _SMOOTHING).var()) / variance


def _light_border(image: Image) -> float:
    """Share of the border that has its commonest colour, other than a dark one."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    low, high = ends_of(image)
    light = border[border.max(axis=1) > max(_DARK, low + _DARK * (high - low))]
    if not len(light):
        return 0.0
    # The commonest is among the medians of the bins that hold most.
    bins: NDArray[np.intp] = np.rint(light / (2 * _COLOUR)).astype(np.intp)
    _, index, counts = np.unique(bins, axis=0, return_inverse=True, return_counts=True)
    colours = [np.median(light[index.ravel() == each], axis=0) for each in np.argsort(-counts)[:3]]
    return max(float((np.abs(light - colour).max(axis=1) <= _COLOUR).sum()) for colour in colours) / len(border)
