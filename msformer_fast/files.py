"""Text and folders: outputs are written to a temporary name, then renamed, so that nothing is ever half written."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from msformer_fast.errors import OutputError

PathLike = str | os.PathLike[str]

#: What temporary files are called.
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8, atomically: whatever happens, `path` holds the old content or all of the new.

    Raises OutputError if the file cannot be written.
    """
    with atomic(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # a name may be no UTF-8


def write_json(path: PathLike, obj: object) -> None:
    """Write JSON atomically: indent 2, final newline; NaN and infinity as null, arrays and NumPy scalars as numbers.

    Raises OutputError if the file cannot be written, TypeError for objects that JSON does not know.
    """
    text = json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic(path) as file:
        # A file name that is no UTF-8 comes as lone surrogates, which JSON writes as it writes a backslash escape.
        file.write(text.encode("utf-8", "backslashreplace"))


def check_output_folder(path: PathLike) -> Path:
    """Create the folder if it is missing (parents too) and return it once a test file could be written in it.

    Raises OutputError if it cannot be created, is not a folder, or cannot be written in.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as exc:
        raise OutputError(
            f"{show(path)}: cannot be used as the output folder ({reason(exc)}); "
            "name a folder that can be created and written in"
        ) from exc
    return folder


@contextmanager
def atomic(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is whole, and leaves no trace if it never is.

    Only a process that is killed leaves its temporary file, named as :data:`TEMPORARY` says.
    Raises OutputError if the file cannot be written.
    """
    target = Path(path)
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        try:
            with temporary.open("xb") as file:  # not mkstemp: its mode 0600 would override the umask
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(
            f"{show(path)}: cannot be written ({reason(exc)}); check the folder, its permissions and the free space"
        ) from exc


def plain(obj: Any) -> Any:
    """What JSON knows: arrays and NumPy scalars as numbers, NaN and infinity as null."""
    if hasattr(obj, "tolist"):  # NumPy scalars, arrays, tensors
        obj = obj.tolist()
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj


def show(path: PathLike) -> str:
    """The path for a message of one line."""
    text = os.fsdecode(path)
    return text if text.isprintable() and text else repr(text)  # a newline in a name must not break the one line


def reason(exc: Exception) -> str:
    """What the system says of an error, in a few words."""
    return getattr(exc, "strerror", None) or type(exc).__name__
