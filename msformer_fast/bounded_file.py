"""A file to read that keeps decoders of damaged files from reserving memory for what it does not hold."""

from __future__ import annotations

import io
import os

from msformer_fast.files import PathLike


class BoundedFile(io.BufferedReader):
    """A file that is never asked for more than it has left: a damaged length would reserve as much memory."""

    def __init__(self, path: PathLike) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))
