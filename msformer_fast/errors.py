"""The errors that this package raises on purpose."""

from __future__ import annotations

import re


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what was given, what is wrong with it, what is accepted.

    The command line prints the message and exits with code 2.
    """


class OutputError(InputError):
    """An output that cannot be written: a full disk, a folder without permission. The message names it and says why."""


class DivergenceError(RuntimeError):
    """A loss of the self-guided loop became NaN or infinite. The message names the iteration."""


class BackendError(RuntimeError):
    """The backend that was asked for cannot run this call. The message says why."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, Python's or PyTorch's, says that memory is at its end.

    Not any "memory": an illegal access of a kernel is another matter, and must be seen as it is.
    """
    return isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)) is not None
