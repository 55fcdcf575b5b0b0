"""The page to look at after a run over many images: one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msformer_fast.errors import InputError
from msformer_fast.files import plain
from msformer_fast.look import style

_STATUSES = ("done", "failed")
_QUALITY = 75
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
# What would end the script element, open a comment or an entity in it, or end a line of JavaScript.
_UNSAFE = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Entry:
    """One image of the page.

    Attributes:
        name: shown; any characters, lone surrogates as U+FFFD.
        status: ``"done"`` or ``"failed"``.
        reason: why this mask, or why it failed.
        confidence: in [0, 1], or ``None``.
        doubtful: marked, to be looked at.
        seconds: that it took, or ``None``.
        thumbnail: a JPEG, which becomes a part of the page, or ``None``.
        links: label and path, relative to the page, as the file system has it.
    """

    name: str
    status: str
    reason: str
    confidence: float | None = None
    doubtful: bool = False
    seconds: float | None = None
    thumbnail: bytes | None = None
    links: tuple[tuple[str, str], ...] = ()


def index_page(entries: Sequence[Entry], *, title: str, settings: Mapping[str, Any]) -> str:
    """The page of a run, HTML that can be encoded as UTF-8; the same arguments give the same text.

    All of it is in the one file, and its content security policy lets it load nothing from elsewhere.

    Args:
        entries: in the order that decides between equals.
        title: any characters.
        settings: shown as a table, in their order; what JSON does not know as ``str`` gives it.

    Raises:
        InputError: a status is neither ``"done"`` nor ``"failed"``, or a link is not relative.
    """
    for entry in entries:
        if entry.status not in _STATUSES:
            raise InputError(
                f"entries: {entry.name!r} has status {entry.status!r}; accepted is one of {', '.join(_STATUSES)}"
            )
    done = sum(entry.status == "done" for entry in entries)
    counts = {
        "images": len(entries),
        "done": done,
        "doubtful": sum(entry.doubtful for entry in entries),
        "failed": len(entries) - done,
    }
    data = {
        "entries": [_card(entry) for entry in entries],
        "settings": [[_shown(str(key)), _shown(_setting(value))] for key, value in settings.items()],
    }
    # Without escapes for what is not ASCII, names of other scripts would take three times the space.
    text = json.dumps(plain(data), allow_nan=False, ensure_ascii=False, separators=(",", ":")).translate(_UNSAFE)
    parts = {"title": html.escape(_shown(title)), "data": text, "look": style()}
    parts |= {key: str(count) for key, count in counts.items()}
    template = resources.files("msformer_fast.cohort").joinpath("index.html").read_text(encoding="utf-8")
    # In one pass: a title that holds a placeholder is not filled in again.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], template)


def thumbnail(picture: NDArray[np.uint8], side: int = 160) -> bytes:
    """A small picture as JPEG.

    Args:
        picture: (H, W, 3) uint8, RGB.
        side: the longest side in pixels; a picture that is smaller keeps its size.

    Returns:
        The bytes of the file.

    Raises:
        InputError: another shape or dtype, or a side under 1.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise InputError(f"picture: got {picture.dtype} {picture.shape}; accepted is uint8 (H, W, 3)")
    if side < 1:
        raise InputError(f"side: got {side}; accepted is 1 or more")
    small = Image.fromarray(np.ascontiguousarray(picture))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Colour at full resolution: at half of it the thin outline of a mask would fade.
    small.save(file, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return file.getvalue()


def _card(entry: Entry) -> dict[str, Any]:
    """What the page's script knows of an image."""
    picture = None if entry.thumbnail is None else base64.b64encode(entry.thumbnail).decode("ascii")
    return {
        "name": _shown(entry.name),
        "status": entry.status,
        "reason": _shown(entry.reason),
        "confidence": entry.confidence,
        "doubtful": bool(entry.doubtful),
        "seconds": entry.seconds,
        "thumbnail": picture,
        "links": [[_shown(label), _address(path)] for label, path in entry.links],
    }


def _address(path: str) -> str:
    """The relative URL of a path, with the bytes that the file system has."""
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:  # no file of this system can be called so
        name = path.encode("utf-8", "replace")
    if os.sep == "\\":
        name = name.replace(b"\\", b"/")
    if name.startswith(b"/"):  # two of them would name another machine
        raise InputError(f"entries: the link {path!r} is absolute; accepted are paths relative to the page")
    return quote(name)


def _shown(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold."""
    return _SURROGATE.sub("\ufffd", text)


def _setting(value: Any) -> str:
    value = plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
