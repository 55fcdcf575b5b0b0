"""What a person points at in a volume: points and boxes of three dimensions, and the slices that they begin in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from msformer_fast.errors import InputError
from msformer_fast.prompts.prompt import FORMS, Box, Point, Prompt, as_prompt, check_together, holds, rows

PointInVolume: TypeAlias = tuple[float, float, float]
BoxInVolume: TypeAlias = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Beginning:
    """Where an object is pointed at, and how far it may reach.

    Attributes:
        prompts: by slice, what is said in it; one or more slices. The object is carried from these to the others.
        first, beyond: the first slice that it may reach, and the first one beyond it.
        box: that it may not leave, or ``None``.
    """

    prompts: dict[int, Prompt]
    first: int
    beyond: int
    box: Box | None = None


@dataclass(frozen=True)
class VolumePrompt:
    """Points and boxes of a volume: x and y in pixels of a slice as it is shown, z slices, all from 0 on.

    Attributes:
        points: (x, y, z) of pixels of the object.
        not_points: (x, y, z) of pixels that are not of it.
        boxes: (x0, y0, z0, x1, y1, z1), two corners of what holds the object; x1, y1 and z1 are the first column, row
            and slice beyond it.
    """

    points: tuple[PointInVolume, ...] = ()
    not_points: tuple[PointInVolume, ...] = ()
    boxes: tuple[BoxInVolume, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; what was not given is left out."""
        return {name: [list(each) for each in given] for name, given in asdict(self).items() if given}

    def check(self, shape: tuple[int, ...], slices: int) -> None:
        """Raises InputError for what cannot be meant in a volume of so many slices (H, W)."""
        heights = [("point", z) for _, _, z in self.points] + [("not-point", z) for _, _, z in self.not_points]
        for name, z in heights:
            if not 0 <= z < slices:
                raise InputError(f"{name}: slice {z:g} is none of the {slices}; accepted is Z from 0 to {slices - 1}")
        for *_, z0, _, _, z1 in self.boxes:
            if z1 <= 0 or z0 >= slices:
                raise InputError(
                    f"box: slices {z0:g} to {z1:g} are none of the {slices}; accepted is Z from 0 to {slices - 1}"
                )
        flat = Prompt(
            tuple((x, y) for x, y, _ in self.points),
            tuple((x, y) for x, y, _ in self.not_points),
            tuple(_in_plane(box) for box in self.boxes),
        )
        flat.check(shape)

    def not_points_of(self, index: int) -> tuple[Point, ...]:
        """What is said not to be of the object in a slice."""
        return tuple((x, y) for x, y, z in self.not_points if math.floor(z) == index)

    def beginnings(self, slices: int) -> list[Beginning]:
        """The objects that are meant: what the points outside of all boxes mean together, and one of each box.

        A box begins in the slices of the points in it; without any, in its middle, where it is filled best.
        """
        left = list(self.points)
        found = []
        for box in self.boxes:
            first, beyond = max(0, math.floor(box[2])), min(slices, math.ceil(box[5]))
            inside = [point for point in left if holds(box, point)]
            left = [point for point in left if point not in inside]
            at = sorted({math.floor(z) for _, _, z in inside}) or [(first + beyond - 1) // 2]
            prompts = {index: self._prompt(index, inside, _in_plane(box)) for index in at}
            found.append(Beginning(prompts, first, beyond, _in_plane(box)))
        if left:
            at = sorted({math.floor(z) for _, _, z in left})
            found.append(Beginning({index: self._prompt(index, left, None) for index in at}, 0, slices))
        return found

    def _prompt(self, index: int, points: Sequence[PointInVolume], box: Box | None) -> Prompt:
        clicks = tuple((x, y) for x, y, z in points if math.floor(z) == index)
        return Prompt(clicks, self.not_points_of(index), () if box is None else (box,))


def given_prompt(points: Any = None, not_points: Any = None, boxes: Any = None) -> Prompt | VolumePrompt | None:
    """The prompt of what a caller gives, of an image or of a volume by how many numbers there are; ``None`` of nothing.

    Args:
        points, not_points, boxes: as in ``as_prompt``; in a volume (x, y, z) and
            (x0, y0, z0, x1, y1, z1).

    Raises:
        InputError: as there; or some are of an image and others of a volume.
    """
    given = {"points": points, "not_points": not_points, "boxes": boxes}
    lengths = {name: _lengths(each) for name, each in given.items()}
    in_volume = {name for name, found in lengths.items() if 3 in found or 6 in found}
    if not in_volume:
        return as_prompt(**given)
    for name, found in lengths.items():
        length = 4 if name == "boxes" else 2
        if length in found:
            raise InputError(
                f"{name}: {FORMS[length]} beside what is given of a volume; accepted is {FORMS[3 * length // 2]} for "
                "all, or nothing of three dimensions"
            )
    prompt = VolumePrompt(
        tuple((x, y, z) for x, y, z in rows("points", points, 3)),
        tuple((x, y, z) for x, y, z in rows("not_points", not_points, 3)),
        tuple((a, b, c, d, e, f) for a, b, c, d, e, f in rows("boxes", boxes, 6)),
    )
    for box in prompt.boxes:
        if not (box[0] < box[3] and box[1] < box[4] and box[2] < box[5]):
            shown = ",".join(f"{each:g}" for each in box)
            raise InputError(f"boxes: {shown} has no volume; accepted is {FORMS[6]}, the first three the smaller ones")
    check_together(prompt.points, prompt.not_points, prompt.boxes)
    return prompt


def _lengths(given: Any) -> set[int]:
    """How many numbers the rows of something have that was given; none of what has no rows of numbers."""
    try:
        rows_of = list(given) if given is not None else []
        return {len(row) for row in rows_of} if rows_of and hasattr(rows_of[0], "__len__") else {len(rows_of)} - {0}
    except TypeError:
        return set()


def _in_plane(box: BoxInVolume) -> Box:
    x0, y0, _, x1, y1, _ = box
    return x0, y0, x1, y1
