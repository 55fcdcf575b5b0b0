"""``msformer-fast`` and ``python -m msformer_fast``: the command line as a process of its own."""

from __future__ import annotations

from typing import NoReturn

from msformer_fast.cli import main
from msformer_fast.process import leave


def run() -> NoReturn:
    """Run the command of this process's arguments, and end the process."""
    leave(main())


if __name__ == "__main__":
    run()
