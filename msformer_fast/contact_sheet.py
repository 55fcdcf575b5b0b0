"""Many segmentations in one picture: each image with the outlines of the truth and of the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from msformer_fast.errors import InputError
from msformer_fast.images import resize_image, resize_nearest
from msformer_fast.overlay import to_rgb

#: Outlines of the truth and of the mask, which colour-blind people tell apart (Okabe and Ito, 2008).
TRUTH_COLOUR = (86, 180, 233)
MASK_COLOUR = (230, 159, 0)
_EDGE = (20, 20, 20)
_BACKGROUND = (32, 32, 32)
_TEXT = (235, 235, 235)
_GAP = 6
_LEAST_SIDE = 32


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of a sheet.

    Attributes:
        name: shown first under the image.
        image: (H, W, C) float in [0, 1]; three channels are RGB, of any other number the mean is shown.
        mask: (H, W) bool.
        truth: (H, W) bool, or ``None``.
        captions: further lines under it.
    """

    name: str
    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None = None
    captions: tuple[str, ...] = ()


def contact_sheet(tiles: Sequence[Tile], *, columns: int = 5, side: int = 256) -> NDArray[np.uint8]:
    """Draw the tiles in rows, in the order given, under one line that says which outline is which.

    The truth is outlined outside its border (light blue), the mask inside its own (orange), so that both lines are
    seen where the two agree; a dark edge makes them visible on light and dark. Text that is too long is cut. A sheet
    narrower than its legend is widened.

    Args:
        tiles: one or more.
        columns: images in a row; a sheet of fewer has as many columns as images.
        side: of the square that every image is fitted into, in pixels.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        InputError: no tile, no column, a side under 32, or a mask or truth of another shape than its image.
    """
    if not tiles:
        raise InputError("tiles: there is none; accepted is one or more")
    if columns < 1:
        raise InputError(f"columns: got {columns}; accepted is 1 or more")
    if side < _LEAST_SIDE:
        raise InputError(f"side: got {side}; accepted is {_LEAST_SIDE} or more")
    for tile in tiles:
        _check(tile)
    columns = min(columns, len(tiles))
    font = ImageFont.load_default(size=max(9, side // 18))
    line = _line_height(font)
    height = side + line * (1 + max(len(tile.captions) for tile in tiles)) + _GAP
    rows = -(-len(tiles) // columns)
    header = 2 * line
    legend = _legend(font, line, any(tile.truth is not None for tile in tiles))
    width = max(columns * (side + _GAP) + _GAP, legend.width)
    sheet = Image.new("RGB", (width, header + rows * (height + _GAP)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(legend, (0, 0))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, top = _GAP + column * (side + _GAP), header + row * (height + _GAP)
        sheet.paste(Image.fromarray(_picture(tile, side)), (left, top))
        for number, text in enumerate((tile.name, *tile.captions)):
            draw.text((left, top + side + 2 + number * line), _cut(text, font, side), fill=_TEXT, font=font)
    return np.array(sheet)


def _check(tile: Tile) -> None:
    if tile.image.ndim != 3 or 0 in tile.image.shape:
        raise InputError(f"tiles: the image of {tile.name!r} has shape {tile.image.shape}; accepted is (H, W, C)")
    for name, each in (("mask", tile.mask), ("truth", tile.truth)):
        if each is not None and each.shape != tile.image.shape[:2]:
            raise InputError(
                f"tiles: the {name} of {tile.name!r} has shape {each.shape}; accepted is that of its image, "
                f"{tile.image.shape[:2]}"
            )


def _picture(tile: Tile, side: int) -> NDArray[np.uint8]:
    """The image in the middle of a square, with its outlines: uint8 (side, side, 3)."""
    height, width = tile.image.shape[:2]
    factor = side / max(height, width)
    shape = max(1, round(height * factor)), max(1, round(width * factor))
    small = np.rint(to_rgb(resize_image(tile.image, shape))).astype(np.uint8)
    mask = resize_nearest(np.asarray(tile.mask, dtype=bool), shape)
    truth = None if tile.truth is None else resize_nearest(np.asarray(tile.truth, dtype=bool), shape)
    _outlines(small, mask, truth, max(1, round(side / 128)))
    square = np.full((side, side, 3), _BACKGROUND, np.uint8)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    square[top : top + shape[0], left : left + shape[1]] = small
    return square


def _outlines(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], truth: NDArray[np.bool_] | None, thickness: int
) -> None:
    from scipy.ndimage import binary_dilation, binary_erosion

    # Where the mask leaves the image there is a line as well: here it says that the mask goes that far.
    inside = mask & ~binary_erosion(mask, iterations=thickness)
    outside = np.zeros_like(mask) if truth is None else binary_dilation(truth, iterations=thickness) & ~truth
    picture[binary_dilation(inside | outside)] = _EDGE  # before both lines, so that no edge covers the other line
    picture[outside] = TRUTH_COLOUR
    picture[inside] = MASK_COLOUR


def _legend(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, line: int, truth: bool) -> Image.Image:
    """As wide as its text needs, two lines high."""
    entries = [("ground truth", TRUTH_COLOUR)] * truth + [("mask", MASK_COLOUR)]
    widths = [round(font.getlength(text)) + 1 for text, _ in entries]
    picture = Image.new("RGB", (2 * _GAP + sum(widths) + line * (3 * len(entries) - 1), 2 * line), _BACKGROUND)
    draw, x = ImageDraw.Draw(picture), _GAP
    for (text, colour), width in zip(entries, widths, strict=True):
        draw.rectangle((x, line - 2, x + line, line + 2), fill=colour)
        draw.text((x + 3 * line // 2, line), text, fill=_TEXT, font=font, anchor="lm")
        x += width + 3 * line
    return picture


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text on one line, or as much of it as fits with an ellipsis."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    _, top, _, bottom = font.getbbox("Ågj|")
    return round(bottom - top) + 5
