"""Names of outputs: no two alike on any file system, and none longer than one can hold."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence

# Bytes that a file system's name may have, less the longest ending that an output gets.
_LONGEST = 255 - 32


def distinct_names(
    short: Sequence[str], whole: Sequence[str], kept: Sequence[str | None] = (), taken: Sequence[str] = ()
) -> list[str]:
    """A name for each file: without its suffix where that tells it from the others.

    Where two files have one short name, both have the whole one; a number follows where even that is taken. Letters'
    case does not tell names apart, since some file systems do not.

    Args:
        short, whole: of each file, without and with its suffix; may begin with folders.
        kept: the name that a file has already, or ``None``; as many as files, or none.
        taken: names that no other file may have.
    """
    plain = [_shortened(name) for name in short]
    count = Counter(name.casefold() for name in plain)
    used = {name.casefold() for name in (*(name for name in kept if name is not None), *taken)}
    names = []
    for index, name in enumerate(plain):
        has = kept[index] if kept else None
        if has is not None:
            names.append(has)
            continue
        if count[name.casefold()] > 1 or name.casefold() in used:
            name = _shortened(whole[index])
        number, wanted = 1, name
        while name.casefold() in used:
            number += 1
            name = f"{wanted}~{number}"
        used.add(name.casefold())
        names.append(name)
    return names


def _shortened(name: str) -> str:
    """A name whose outputs' names the file system can hold: cut, with a digest of the whole."""
    folder, last = os.path.split(name)
    data = os.fsencode(last)
    if len(data) <= _LONGEST:
        return name
    kept = os.fsdecode(data[: _LONGEST - 16].decode("utf-8", "ignore").encode("utf-8"))
    return os.path.join(folder, f"{kept}~{hashlib.sha256(data).hexdigest()[:12]}")
