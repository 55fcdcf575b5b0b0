"""Test images with known masks: a skin lesion under a dermatoscope, a chest X-ray and a CT slice, drawn from a seed.

They carry no patient data and no licence of others, look like the real thing at a glance, and have the
features that make the real images hard: hairs, a vignette, uneven pigment; ribs, a frame darker than the lungs.
They are for tests, demonstrations and timing; accuracy figures on them say nothing about real images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.errors import InputError

Field: TypeAlias = NDArray[np.float64]

_MIN_SIDE = 33


class Phantom(NamedTuple):
    """A drawn image (H, W, 3), float32 in [0, 1], and the mask (H, W), bool, of what there is to find."""

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]


def make(kind: str, size: tuple[int, int] = (257, 257), seed: int = 0) -> Phantom:
    """Draw the phantom of a name in :data:`KINDS`.

    Args:
        kind: "lesion", "chest" or "ct".
        size: (H, W) in pixels, each at least 33.
        seed: non-negative integer; the same seed and size give the same pixels.

    Returns:
        The image, (H, W, 3) float32 in [0, 1], and its mask, (H, W) bool.

    Raises:
        InputError: the kind is unknown, or size or seed is not as above.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"kind: got {kind!r}; accepted is one of {', '.join(KINDS)}")
    return KINDS[kind](size, seed)


def lesion(size: tuple[int, int] = (257, 257), seed: int = 0) -> Phantom:
    """Draw a pigmented skin lesion as seen through a dermatoscope.

    Skin with texture, one brown lesion with an irregular border and uneven pigment, dark hairs, a dark
    vignette and sensor noise. The mask is the lesion. Arguments, results and errors as in :func:`make`.
    """
    height, width = _checked(size)
    rng = _generator(seed)
    y, x = _grid(height, width)

    angle, distance, radius = _lesion_polar(y, x, rng)
    border = np.zeros_like(angle)
    for k in range(2, 8):
        border += rng.normal(0, 0.10) / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    inside = 1 + border - distance / radius + 0.07 * _noise((height, width), 0.03, rng)
    mask = _largest_part(inside > 0)

    # Tones vary together along red-to-yellow; free channels would give green or violet skin.
    skin = np.array([0.90, 0.74, 0.63]) + rng.uniform(-1, 1) * np.array([0.03, -0.02, -0.06])
    brown = np.array([0.47, 0.29, 0.19]) + rng.uniform(-1, 1) * np.array([0.12, 0.09, 0.06])
    texture = 0.020 * _noise((height, width), 0.12, rng) + 0.014 * _noise((height, width), 0.008, rng)
    pigment = 0.050 * _noise((height, width), 0.06, rng) + 0.035 * _noise((height, width), 0.008, rng)
    # Pigment is darkest in the middle, and its edge is a slope, not a step.
    pigment -= 0.12 * np.clip(inside, 0, 1)
    opacity = _soften(mask, 0.018)[..., None]
    image = (1 - opacity) * (skin + texture[..., None]) + opacity * (brown + pigment[..., None])

    hairs = _hairs((height, width), rng)[..., None]
    image = image * (1 - 0.75 * hairs) + 0.75 * hairs * np.array([0.13, 0.09, 0.08])
    eccentricity = np.hypot(y * 0.93, x * 1.02)
    light = 1 - 0.10 * eccentricity**2 - 0.85 * _smooth_step(eccentricity, 0.95, 1.30)
    image = image * np.clip(light, 0.08, 1)[..., None] + rng.normal(0, 0.010, (height, width, 3))
    return Phantom(np.clip(image, 0, 1).astype(np.float32), mask)


def chest(size: tuple[int, int] = (257, 257), seed: int = 0) -> Phantom:
    """Draw a frontal chest X-ray: a bright body on black, dark lungs, ribs, spine, heart, clavicles, noise.

    The three channels are equal. The mask is both lungs, without the heart. Arguments, results and errors as
    in :func:`make`.
    """
    height, width = _checked(size)
    rng = _generator(seed)
    y, x = _grid(height, width)
    x = x + rng.uniform(-0.05, 0.05)
    y = y + rng.uniform(-0.04, 0.04)
    scale = rng.uniform(0.94, 1.04)
    y, x = y / scale, x / scale

    side = np.abs(x)
    mask = _lungs(y, x, rng)
    half_width = 0.26 + 0.74 * _smooth_step(y, -1.0, -0.50) - 0.13 * _smooth_step(y, -0.25, 0.25)
    thickness = np.sqrt(np.clip(1 - (side / half_width) ** 4, 0, 1))
    image = thickness * (0.62 + 0.13 * _smooth_step(y, 0.1, 0.6))
    image += thickness * (0.15 * np.exp(-((x / 0.12) ** 2)) + 0.07 * np.exp(-((x / 0.28) ** 2)))
    image += 0.13 * (1 - _smooth_step(_heart(y, x), 0.4, 1.2))
    belly = _smooth_step(y, 0.50, 0.62) * thickness
    image += 0.10 * belly

    air = _soften(mask, 0.008)
    # Less tissue lies over the lateral lung than over the hilum, where the vessels are.
    lung = 0.20 + 0.16 * np.exp(-(((side - 0.14) / 0.15) ** 2)) + 0.10 * _smooth_step(y, 0.0, 0.7)
    lung += 0.022 * _noise((height, width), 0.02, rng)
    image = image * (1 - air) + lung * air

    # Bone shows against air, and hardly against soft tissue.
    cage = thickness * (1 - belly) * _smooth_step(side, 0.08, 0.2) * (0.25 + 0.75 * air)
    image += cage * (0.085 * _ribs(y, side) + 0.09 * _clavicles(y, side))
    image += 0.03 * np.cos(y * 48) * np.exp(-((x / 0.07) ** 2)) * thickness
    image += 0.02 * _noise((height, width), 0.10, rng) * thickness
    image = _soften(image, 0.003) + 0.02 + rng.normal(0, 0.008, (height, width))
    grey = np.clip(image, 0, 1).astype(np.float32)
    return Phantom(np.repeat(grey[..., None], 3, axis=2), mask)


def ct(size: tuple[int, int] = (257, 257), seed: int = 0) -> Phantom:
    """Draw an axial CT slice at the height of the heart, through a window from -1000 to 400 HU.

    A body of fat, muscle and bone on air, a table beneath it, two lungs with vessels, the heart, the aorta, a main
    bronchus of air, and a bubble of gas in front. The three channels are equal. The mask is both lungs with their
    vessels, without bronchus and gas. Arguments, results and errors as in :func:`make`.
    """
    height, width = _checked(size)
    rng = _generator(seed)
    y, x = _grid(height, width)
    y, x = y - rng.uniform(-0.05, 0.05), (x - rng.uniform(-0.05, 0.05)) / rng.uniform(0.95, 1.05)

    def ellipse(row: float, column: float, half_height: float, half_width: float) -> NDArray[np.bool_]:
        return np.asarray(((y - row) / half_height) ** 2 + ((x - column) / half_width) ** 2 < 1)

    heart = ellipse(-0.08, 0.08, 0.27, 0.25) | ellipse(0.0, 0.0, 0.30, 0.10)
    spine = ellipse(0.42, 0.0, 0.16, 0.12)
    lungs = ellipse(0.05, -0.40, 0.42, 0.30) | ellipse(0.05, 0.42, 0.40, 0.28)
    mask = lungs & ~heart & ~ellipse(0.30, 0.12, 0.09, 0.09) & ~spine

    units = np.full((height, width), -1000.0)
    units[(np.abs(y - 0.78 - 0.10 * x**2) < 0.025) & (np.abs(x) < 0.9)] = 150
    units[ellipse(0.0, 0.0, 0.64, 0.86)] = -80
    units[ellipse(0.0, 0.0, 0.59, 0.80)] = 40
    units[ellipse(0.03, 0.0, 0.51, 0.74) & ~ellipse(0.03, 0.0, 0.48, 0.71) & (np.cos(14 * np.arctan2(y, x)) > 0)] = 350
    units[spine] = 300
    units[mask] = -820 + 60 * y[mask]
    for _ in range(int(rng.integers(14, 22))):
        column = rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)
        vessel = ellipse(rng.uniform(-0.2, 0.35), float(column), *rng.uniform(0.012, 0.03, 2))
        units[vessel & mask] = 30
    units[ellipse(0.18, -0.02, 0.045, 0.05)] = -990
    units[ellipse(-0.47, 0.10, 0.035, 0.09)] = -990
    image = _soften((units + 1000) / 1400, 0.004) + rng.normal(0, 0.012, (height, width))
    grey = np.clip(image, 0, 1).astype(np.float32)
    return Phantom(np.repeat(grey[..., None], 3, axis=2), mask)


KINDS: dict[str, Callable[[tuple[int, int], int], Phantom]] = {"lesion": lesion, "chest": chest, "ct": ct}


def _lesion_polar(y: Field, x: Field, rng: np.random.Generator) -> tuple[Field, Field, float]:
    """Angle and distance from the lesion's centre in its own stretched, turned axes, and its mean radius."""
    dy, dx = y - rng.uniform(-0.15, 0.15), x - rng.uniform(-0.15, 0.15)
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.05, 1.35)
    along, across = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    along, across = along / stretch, across * stretch
    return np.arctan2(across, along), np.hypot(along, across), float(rng.uniform(0.36, 0.52))


def _hairs(shape: tuple[int, int], rng: np.random.Generator) -> Field:
    """Coverage in [0, 1] of a few thin curved hairs."""
    canvas = np.zeros(shape)
    step = np.linspace(0, 1, 4 * max(shape))[:, None]
    for _ in range(int(rng.integers(5, 10))):
        start = rng.uniform(0.05, 0.95, 2)
        turn = rng.uniform(0, 2 * np.pi)
        end = start + rng.uniform(0.25, 0.6) * np.array([np.sin(turn), np.cos(turn)])
        bend = (start + end) / 2 + rng.normal(0, 0.09, 2)
        curve = (1 - step) ** 2 * start + 2 * step * (1 - step) * bend + step**2 * end
        rows, columns = np.floor(curve * shape).astype(int).T
        seen = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        canvas[rows[seen], columns[seen]] = 1
    return np.clip(1.6 * _soften(canvas, 0.0025), 0, 1)


def _lungs(y: Field, x: Field, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Both lungs: an apex under the clavicle, a straight spine side, a domed base, the heart cut out."""
    both = np.zeros(x.shape, dtype=bool)
    for sign in (-1.0, 1.0):
        side = sign * x
        top, base = -0.78 + rng.uniform(-0.03, 0.03), 0.56 + rng.uniform(-0.06, 0.04) + 0.05 * sign
        drop = np.clip((y - top) / (base - top), 0, 1.5)
        outer = 0.39 + 0.33 * np.sin(np.pi / 2 * np.clip(drop / 0.9, 0, 1)) + rng.uniform(-0.03, 0.02)
        inner = 0.13 + 0.05 * np.exp(-((drop / 0.22) ** 2)) + 0.05 * drop**2
        middle, half = (outer + inner) / 2, (outer - inner) / 2
        apex = np.sqrt(np.clip(1 - (1 - np.clip(drop / 0.20, 0, 1)) ** 2, 0, 1))
        # The diaphragm is a dome: highest at mid-lung, lowest at the lateral angle.
        floor = base - 0.13 + 0.9 * np.clip(side - 0.28, 0, None) ** 1.7
        floor -= 0.05 * np.clip(0.28 - side, 0, None)
        both |= (np.abs(side - middle) < half * apex) & (y > top) & (y < floor)
    return both & (_heart(y, x) > 1)


def _heart(y: Field, x: Field) -> Field:
    """Distance from the heart's centre, 1 on its outline: an ellipse whose tip points down and outwards."""
    along, across = 0.80 * (y - 0.24) + 0.60 * (x - 0.10), 0.80 * (x - 0.10) - 0.60 * (y - 0.24)
    return np.hypot(along / 0.46, across / 0.27)


def _ribs(y: Field, side: Field) -> Field:
    """Posterior ribs, which fall away from the spine, and fainter anterior ribs, which rise towards it."""
    posterior = y - 0.28 * side + 0.75 * side**2
    anterior = y + 0.10 - 0.85 * side + 0.25 * side**2
    front = _smooth_step(side, 0.25, 0.45)
    bands = np.clip(np.cos(2 * np.pi * posterior / 0.15), -0.2, 1)
    return np.asarray(bands + 0.35 * front * np.clip(np.cos(2 * np.pi * anterior / 0.2), 0, 1))


def _clavicles(y: Field, side: Field) -> Field:
    centre = -0.58 - 0.22 * np.sin(np.clip(side - 0.08, 0, 0.75) * 2.6)
    return np.asarray(np.exp(-(((y - centre) / 0.035) ** 2)) * (side < 0.8))


def _grid(height: int, width: int) -> tuple[Field, Field]:
    """Row and column coordinates in [-1, 1], (H, W) each."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return y, x


def _noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Field:
    """Smooth noise of mean 0 and standard deviation 1; ``scale`` is its grain over the shorter side."""
    field = _soften(rng.normal(size=shape), scale, mode="wrap")
    return np.asarray((field - field.mean()) / field.std())


def _soften(field: NDArray[Any], scale: float, mode: str = "nearest") -> Field:
    from scipy import ndimage

    sigma = scale * min(field.shape)
    return np.asarray(ndimage.gaussian_filter(field.astype(np.float64), sigma, mode=mode))


def _smooth_step(value: Field, low: float, high: float) -> Field:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    largest = 1 + np.bincount(parts.ravel())[1:].argmax()
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(parts == largest)
    return filled


def _checked(size: Any) -> tuple[int, int]:
    whole = isinstance(size, tuple | list) and all(isinstance(n, int | np.integer) for n in size)
    if not whole or len(size) != 2 or min(size) < _MIN_SIDE:
        raise InputError(f"size: got {size!r}; accepted is (H, W), whole numbers of at least {_MIN_SIDE}")
    return int(size[0]), int(size[1])


def _generator(seed: Any) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed: got {seed!r}; accepted is a whole number of at least 0")
    return np.random.default_rng(int(seed))
