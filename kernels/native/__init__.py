"""CPU kernels in C++ and their launchers: tensors in, tensors out. No autograd, no choice of backend.

Installed as ``msformer_fast.kernels.native``, with a library for each instruction set where a compiler was found.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def library_path(name: str) -> Path:
    """Where the library of an instruction set lies, if it was compiled."""
    return FOLDER / f"native_{name}.so"


def is_compiled() -> bool:
    """Whether the libraries were compiled when the package was installed. PyTorch is not loaded."""
    return library_path("baseline").is_file()
