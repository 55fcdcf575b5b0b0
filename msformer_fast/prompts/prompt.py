"""What a person points at: points of the object, points that are not of it, boxes around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from msformer_fast.errors import InputError
from msformer_fast.margin import Margin

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]

#: How a point and a box are written, by how many numbers they have; in a volume they have half as many more.
FORMS = {2: "X,Y", 4: "X0,Y0,X1,Y1", 3: "X,Y,Z", 6: "X0,Y0,Z0,X1,Y1,Z1"}


@dataclass(frozen=True)
class Prompt:
    """Points and boxes in pixels of an image: x to the right, y down, from its upper left corner.

    Attributes:
        points: (x, y) of pixels of the object.
        not_points: (x, y) of pixels that are not of it.
        boxes: (x0, y0, x1, y1), upper left and lower right corner of what holds the object; x1 and y1 are the first
            column and row beyond it.
    """

    points: tuple[Point, ...] = ()
    not_points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.not_points or self.boxes)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; what was not given is left out."""
        return {name: [list(each) for each in given] for name, given in asdict(self).items() if given}

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises InputError for what cannot be meant in an image (H, W, ...)."""
        height, width = shape[:2]
        accepted = f"accepted are x from 0 to {width - 1} and y from 0 to {height - 1}"
        for name, points in (("point", self.points), ("not-point", self.not_points)):
            for x, y in points:
                if not (0 <= x < width and 0 <= y < height):
                    raise InputError(f"{name}: {x:g},{y:g} lies outside of the image of {width} x {height}; {accepted}")
        for box in self.boxes:
            if _width_and_height(_clipped(box, width, height)) is None:
                shown = ",".join(f"{each:g}" for each in box)
                raise InputError(f"box: {shown} lies outside of the image of {width} x {height}; {accepted}")

    def within(self, margin: Margin, shape: tuple[int, ...]) -> Prompt | None:
        """The same in the picture without its margin; ``None`` where something was pointed at in the margin.

        shape: (H, W, ...) of the whole image.
        """
        height, width = shape[0] - margin.top - margin.bottom, shape[1] - margin.left - margin.right

        def moved(points: Iterable[Point]) -> tuple[Point, ...]:
            return tuple((x - margin.left, y - margin.top) for x, y in points)

        points, boxes = moved(self.points), []
        for x0, y0, x1, y1 in self.boxes:
            box = _clipped((x0 - margin.left, y0 - margin.top, x1 - margin.left, y1 - margin.top), width, height)
            if _width_and_height(box) is None:
                return None
            boxes.append(box)
        if not all(0 <= x < width and 0 <= y < height for x, y in points):
            return None
        # What is said of the margin itself need not be said again.
        outside = [(x, y) for x, y in moved(self.not_points) if 0 <= x < width and 0 <= y < height]
        return Prompt(points, tuple(outside), tuple(boxes))

    def at(self, shape: tuple[int, ...], other: tuple[int, ...]) -> Prompt:
        """The same for the image (H, W, ...) at another size; boxes are cut at its borders."""
        down, right = other[0] / shape[0], other[1] / shape[1]

        def scaled(points: Iterable[Point]) -> tuple[Point, ...]:
            return tuple(((x + 0.5) * right - 0.5, (y + 0.5) * down - 0.5) for x, y in points)

        boxes = (_clipped(box, shape[1], shape[0]) for box in self.boxes)
        return Prompt(
            scaled(self.points),
            scaled(self.not_points),
            tuple((x0 * right, y0 * down, x1 * right, y1 * down) for x0, y0, x1, y1 in boxes),
        )


def as_prompt(points: Any = None, not_points: Any = None, boxes: Any = None) -> Prompt | None:
    """The prompt of what a caller gives; ``None`` of nothing.

    Args:
        points, not_points: one (x, y) or several, as sequences or an array (N, 2); ``None`` for none.
        boxes: one (x0, y0, x1, y1) or several.

    Raises:
        InputError: no numbers, too few or too many of them, a box of no area, a point that is a not-point too, a point
            outside of all boxes, or not-points alone.
    """
    prompt = Prompt(
        tuple((x, y) for x, y in rows("points", points, 2)),
        tuple((x, y) for x, y in rows("not_points", not_points, 2)),
        tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in rows("boxes", boxes, 4)),
    )
    for box in prompt.boxes:
        if _width_and_height(box) is None:
            shown = ",".join(f"{each:g}" for each in box)
            raise InputError(f"boxes: {shown} has no area; accepted is X0,Y0,X1,Y1 with X0 < X1 and Y0 < Y1")
    check_together(prompt.points, prompt.not_points, prompt.boxes)
    return prompt or None


def check_together(
    points: Sequence[Sequence[float]], not_points: Sequence[Sequence[float]], boxes: Sequence[Sequence[float]]
) -> None:
    """Raises InputError for what cannot be meant together, in an image or in a volume: a point that is a not-point too,
    a point outside of all boxes, or not-points alone."""
    ruled_out = {tuple(map(math.floor, point)) for point in not_points}
    for point in points:
        shown = ",".join(f"{each:g}" for each in point)
        if tuple(map(math.floor, point)) in ruled_out:
            raise InputError(f"points: {shown} is one of not_points too; give each pixel to one of them")
        if boxes and not any(holds(box, point) for box in boxes):
            raise InputError(f"points: {shown} lies in no box; give points within the boxes, or no boxes")
    if not_points and not (points or boxes):
        raise InputError("not_points: given alone; accepted with points or boxes, which say what the object is")


def holds(box: Sequence[float], point: Sequence[float]) -> bool:
    """Whether a point lies in a box, of an image or of a volume: least corner, then the first place beyond it."""
    axes = len(point)
    return all(low <= at < beyond for low, at, beyond in zip(box[:axes], point, box[axes:], strict=True))


def rows(name: str, given: Any, length: int) -> list[list[float]]:
    """Rows of ``length`` finite numbers. Raises InputError, which calls them ``name``, for anything else."""
    if given is None:
        return []
    accepted = f"accepted are {FORMS[length]}, finite numbers, one or several"
    try:
        array = np.asarray(given)
        if array.dtype.kind not in "iuf":
            array = np.asarray([[_number(each) for each in row] for row in given], dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got {given!r}; {accepted}") from None
    if array.size == 0:
        return []
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != length or not np.isfinite(array).all():
        raise InputError(f"{name}: got {given!r}; {accepted}")
    return [[float(each) for each in row] for row in array]


def _number(value: Any) -> float:
    """A number that is no text and no truth value."""
    if isinstance(value, (bool, str, np.bool_)):
        raise TypeError
    return float(value)


def _clipped(box: Box, width: float, height: float) -> Box:
    x0, y0, x1, y1 = box
    return max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1)


def _width_and_height(box: Box) -> tuple[float, float] | None:
    """Of a box that has an area."""
    width, height = box[2] - box[0], box[3] - box[1]
    return (width, height) if width > 0 and height > 0 else None
