"""Points and boxes as people write them: on the command line, and in the cells of a list."""

from __future__ import annotations

import re

from msformer_fast.errors import InputError
from msformer_fast.prompts.prompt import FORMS

#: Arguments of :func:`msformer_fast.segment` by the names of a list's columns, and how many numbers one has.
COLUMNS = {
    **dict.fromkeys(("point", "points"), ("points", 2)),
    **dict.fromkeys(("not_point", "not_points", "not-point", "not-points"), ("not_points", 2)),
    **dict.fromkeys(("box", "boxes"), ("boxes", 4)),
}


def parse(text: str, length: int, name: str) -> tuple[float, ...]:
    """The numbers of one point (``length`` 2) or box (4), separated by commas or blanks; in a volume 3 or 6.

    Raises InputError, which calls it ``name``.
    """
    in_volume = 3 * length // 2
    pieces = [piece for piece in re.split(r"[,\s]+", text.strip().strip("()[]")) if piece]
    try:
        numbers = tuple(float(piece) for piece in pieces)
    except ValueError:
        numbers = ()
    if len(numbers) not in (length, in_volume):
        raise InputError(
            f"{name}: got {text!r}; accepted is {FORMS[length]}, numbers of pixels, or {FORMS[in_volume]} in a volume"
        )
    return numbers


def parse_cell(text: str, length: int, name: str) -> list[list[float]]:
    """All points or boxes of a cell, separated by semicolons; none of an empty one."""
    return [list(parse(piece, length, name)) for piece in text.split(";") if piece.strip()]
