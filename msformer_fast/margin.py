"""A uniform margin around a picture, as scans of prints and exported figures have one: found, and told from background.

What tells a margin from a natural background of one colour is where it ends: along straight lines parallel to the
picture's sides. A body on black air, or a specimen on white, touches the box around it in a few places only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.images import MIN_SIDE

# How far from the margin's colour a value may lie, in [0, 1]: noise of a scan and of JPEG; and what is surely beyond,
# next to the picture too, where JPEG rings. Of a line so many pixels may exceed each.
_NEAR, _FAR = 10 / 255, 30 / 255
_BEYOND_NEAR, _BEYOND_FAR = 0.3, 0.03
# Part of the margin's inner edge along which the picture has to differ from it: somewhere in so many lines, as a part
# of the picture's, and at most so many: a circle comes to 0.4.
_STRAIGHT = 0.5
_EDGE, _EDGE_MOST = 0.04, 16
# Up to here a margin is black, which a background may be by nature: it counts where it ends more sharply, and has its
# like on the opposite side or is on three; what it has more than the opposite, as a part of the side, is the picture's.
_BLACK = 0.1
_STRAIGHT_BLACK = 0.8
_UNLIKE = 0.02
# One line or two along one side are no margin, but what a camera or a program left; as a part of the side.
_THIN = 0.02
# Lines between margin and picture that are a mixture of both, where the picture was resized or compressed.
_MIXED = 4
# A margin may lie within a margin: a page, the line around a print.
_LAYERS = 3
_SIDES = ("top", "bottom", "left", "right")
_OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


@dataclass(frozen=True)
class Margin:
    """Lines of pixels that surround the picture proper.

    Attributes:
        top, bottom, left, right: how many, 0 or more, not all 0.
    """

    top: int
    bottom: int
    left: int
    right: int

    def inside(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Rows and columns of the picture proper in an array (H, W, ...)."""
        return slice(self.top, shape[0] - self.bottom), slice(self.left, shape[1] - self.right)

    def pad(self, inner: NDArray[Any], value: Any) -> NDArray[Any]:
        """A map (h, w) of the picture proper at the size of the whole, (H, W); ``value`` in the margin."""
        widths = (self.top, self.bottom), (self.left, self.right)
        return np.pad(inner, widths, constant_values=value)

    def __str__(self) -> str:
        parts = [f"{getattr(self, side)} at the {side}" for side in _SIDES if getattr(self, side)]
        return f"a uniform margin of {', '.join(parts)} (pixels)"


def find_margin(image: NDArray[np.floating[Any]]) -> Margin | None:
    """The uniform margin of an image, or ``None``.

    Each side may have another colour, or no margin. A black margin counts only where the opposite side has one too:
    black on one side is a radiograph's own.

    Args:
        image: (H, W, C) floats in [0, 1], which is not checked.
    """
    box = _Box(image)
    for _ in range(_LAYERS):
        if not box.peel():
            break
    margin = Margin(box.top, image.shape[0] - box.bottom, box.left, image.shape[1] - box.right)
    inside = image[margin.inside(image.shape)]
    # A plain shape on a plain ground is a drawing, not a picture in a margin.
    picture = max(float(np.ptp(inside[..., channel])) for channel in range(image.shape[2])) > _FAR
    return margin if picture and any((margin.top, margin.bottom, margin.left, margin.right)) else None


class _Box:
    """What is left of an image, margin by margin."""

    def __init__(self, image: NDArray[np.floating[Any]]) -> None:
        self._image = image
        self.top, self.left = 0, 0
        self.bottom, self.right = image.shape[:2]

    def peel(self) -> bool:
        """Take off the outermost margin, if there is one."""
        before = {side: getattr(self, side) for side in _SIDES}
        colours: dict[str, NDArray[Any]] = {}
        # Side after side, until none moves: beside a margin on top, only the rest of the left side is uniform.
        while any([self._advance(side, colours) for side in _SIDES]):
            pass
        widths = {side: abs(getattr(self, side) - before[side]) for side in _SIDES}
        kept = self._margins({side: width for side, width in widths.items() if width}, colours)
        for side, start in before.items():
            setattr(self, side, start)
            self._move(side, kept.get(side, 0))
        for side, width in kept.items():
            if width == widths[side]:
                self._trim(side, colours[side])
        return bool(kept)

    def _advance(self, side: str, colours: dict[str, NDArray[Any]]) -> bool:
        moved = False
        while min(self.bottom - self.top, self.right - self.left) >= MIN_SIDE:
            line = self._line(side, 0)
            colour = colours.get(side)
            if colour is None:
                colour = np.median(line, axis=0)
            away = _away(line, colour)
            if (away > _NEAR).mean() > _BEYOND_NEAR or (away > _FAR).mean() > _BEYOND_FAR:
                break
            colours[side] = colour
            self._move(side, 1)
            moved = True
        return moved

    def _margins(self, widths: dict[str, int], colours: dict[str, NDArray[Any]]) -> dict[str, int]:
        """Those of the sides found whose margin is one, and its width."""
        kept: dict[str, int] = {}
        for alike in _alike(list(widths), colours):
            # Together: the picture may be as light as the margin along one of them.
            differs = np.concatenate([self._differs(side, colours[side]) for side in alike]).mean()
            black = colours[alike[0]].max() <= _BLACK
            if differs < (_STRAIGHT_BLACK if black else _STRAIGHT):
                continue
            for side in alike:
                length = self._length(side)
                opposite = widths[_OPPOSITE[side]] if _OPPOSITE[side] in alike else 0
                if not black or (not opposite and len(alike) == 3):
                    kept[side] = widths[side]
                elif opposite:
                    kept[side] = min(widths[side], opposite + round(_UNLIKE * length))
        thin = len(kept) < 3
        return {side: width for side, width in kept.items() if not thin or width >= _THIN * self._length(side)}

    def _differs(self, side: str, colour: NDArray[Any]) -> NDArray[np.bool_]:
        """Where along a side the picture differs from the margin, just within it."""
        across = self.bottom - self.top if side in ("top", "bottom") else self.right - self.left
        depth = int(np.clip(round(_EDGE * across), 2, _EDGE_MOST))
        lines = [_away(self._line(side, each), colour) for each in range(depth)]
        return np.asarray(np.max(lines, axis=0) > _FAR)

    def _length(self, side: str) -> int:
        """Of the whole image, across the side."""
        return int(self._image.shape[0 if side in ("top", "bottom") else 1])

    def _trim(self, side: str, colour: NDArray[Any]) -> None:
        """Take off what is a mixture of margin and picture: lines that are much nearer to the margin than the next."""
        for _ in range(_MIXED):
            if min(self.bottom - self.top, self.right - self.left) <= MIN_SIDE:
                return
            here, further = (float(_away(self._line(side, depth), colour).mean()) for depth in (0, 2))
            if here > 0.8 * further:
                return
            self._move(side, 1)

    def _line(self, side: str, depth: int) -> NDArray[np.floating[Any]]:
        """A line of the box, (n, C); depth 0 is the outermost."""
        box = self._image[self.top : self.bottom, self.left : self.right]
        if side in ("top", "bottom"):
            return box[depth if side == "top" else -1 - depth]
        return box[:, depth if side == "left" else -1 - depth]

    def _move(self, side: str, lines: int) -> None:
        inwards = lines if side in ("top", "left") else -lines
        setattr(self, side, getattr(self, side) + inwards)


def _away(line: NDArray[np.floating[Any]], colour: NDArray[Any]) -> NDArray[np.floating[Any]]:
    return np.asarray(np.abs(line - colour).max(axis=1))


def _alike(sides: list[str], colours: dict[str, NDArray[Any]]) -> Iterator[list[str]]:
    """The sides in groups of one colour."""
    left = list(sides)
    while left:
        first = left[0]
        group = [side for side in left if np.abs(colours[side] - colours[first]).max() <= _NEAR]
        left = [side for side in left if side not in group]
        yield group
