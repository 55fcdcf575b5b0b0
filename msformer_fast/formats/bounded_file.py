"""A file to read that keeps decoders of damaged files from reserving memory for what it does not hold."""

from __future__ import annotations

import io
import os
import stat

from msformer_fast.errors import InputError
from msformer_fast.files import PathLike, reason, show


class BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it has left: a damaged length would reserve as much memory."""

    def __init__(self, path: PathLike) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_regular(path: PathLike, formats: str) -> BoundedFile:
    """Open a file of which something is to be read.

    Args:
        formats: what is accepted, for the messages.

    Raises:
        InputError: it cannot be read, is a folder or a device, or is empty.
    """
    name = show(path)
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)  # before opening: of a pipe that would wait for ever
        file = BoundedFile(path) if regular else None
    except (OSError, ValueError) as exc:
        raise InputError(f"{name}: cannot be read ({reason(exc)}); give the path of a {formats} file") from exc
    if file is None:
        raise InputError(f"{name}: is not a file (a folder or a device); give the path of one {formats} file")
    if file.size == 0:
        file.close()
        raise InputError(f"{name}: the file is empty; give a {formats} file")
    return file
