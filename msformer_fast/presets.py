"""Settings of :func:`msformer_fast.segment` by name: the paper's, and those that give as good masks much sooner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msformer_fast.errors import InputError


class Preset(NamedTuple):
    """What a preset sets: the size in pixels that the network sees, when the loop stops, and how exact the products of
    float32 are (``precision`` of :func:`msformer_fast.segment`)."""

    size: int
    max_iterations: int
    patience: int | None
    precision: str


#: By name. ``segment(image, **PRESETS["paper"]._asdict())``.
PRESETS: Mapping[str, Preset] = {
    "paper": Preset(size=257, max_iterations=50, patience=None, precision="highest"),
    "quick": Preset(size=129, max_iterations=10, patience=3, precision="high"),
}
#: That of the command line, whose values are the defaults of the Python functions too.
DEFAULT = "quick"


def preset(name: str) -> Preset:
    """The preset of a name. Raises InputError for another."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: got {name!r}; accepted is one of {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_name(settings: Mapping[str, Any]) -> str:
    """Which preset these settings are, or the nearest and what differs: ``"quick, but size 257"``."""
    names = Preset._fields
    differing = {
        name: [field for field in names if settings.get(field) != getattr(each, field)]
        for name, each in PRESETS.items()
    }
    best = min(differing, key=lambda name: len(differing[name]))
    changes = ", ".join(f"{field.replace('_', ' ')} {settings.get(field)}" for field in differing[best])
    return f"{best}, but {changes}" if changes else best
