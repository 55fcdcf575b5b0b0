"""The compiled libraries of the CPU kernels: the one for this processor, its functions by name, PyTorch's threads.

``native.h`` is the only statement of what functions there are. It is read here, so that a call names its arguments, and
one that does not fit is an error instead of a crash.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msformer_fast.float32_products import parts_of_16_bits
from msformer_fast.kernels.native import FOLDER, library_path

#: What PyTorch calls the processor's instruction sets, and the library that is compiled for them.
VARIANTS = {"AVX512": "avx512", "AVX512_VNNI": "avx512", "AVX2": "avx2"}

#: The functions of the library that was told last in how many parts to take operands of products, and in how many.
_told: tuple[object, int] = (None, 0)

_KINDS = {"int64_t": ctypes.c_int64, "float": ctypes.c_float}


def variant() -> str:
    """The library for this processor, as PyTorch sees it (which ``ATEN_CPU_CAPABILITY`` limits)."""
    return VARIANTS.get(torch.backends.cpu.get_cpu_capability(), "baseline")


@functools.cache
def why_not_built() -> str | None:
    """Why there is no library for this processor, or ``None``."""
    path = library_path(variant())
    if path.is_file():
        return None
    if sys.platform != "linux":
        return f"no CPU kernels are built for {sys.platform}"
    return "the CPU kernels were not compiled when the package was installed; install it again where g++ is found"


def run(function: str, **arguments: Any) -> None:
    """Call a function of the library with PyTorch's number of threads.

    Args:
        function: its name in ``native.h``.
        arguments: by name, all but ``threads``: contiguous tensors, or ``None`` for a null pointer; numbers.

    Raises:
        TypeError: an argument that the function does not have, or that is missing.
    """
    functions, parts = _functions(), parts_of_16_bits()
    if _told[0] is not functions or _told[1] != parts:
        use_tiles(parts)
    call, kinds = functions[function]
    arguments["threads"] = torch.get_num_threads()
    if arguments.keys() != kinds.keys():
        raise TypeError(f"{function} takes {', '.join(kinds)}; got {', '.join(arguments)}")
    _call(call, kinds, arguments)


def use_tiles(parts: int) -> int:
    """Have products made on the matrix unit, of operands in so many parts; 0: of vectors.

    Returns:
        ``parts``, or 0 where the processor or the system has no such unit.
    """
    global _told
    functions, used = _functions(), ctypes.c_int64()  # no tensor: modes in which tensors have no data would make it
    call, _ = functions["use_tiles"]
    call(parts, ctypes.byref(used))
    _told = functions, parts
    return used.value


def _call(call: Any, kinds: dict[str, str], arguments: dict[str, Any]) -> None:
    call(*[_value(arguments[name], kind) for name, kind in kinds.items()])


def _value(value: Any, kind: str) -> float | None:
    """What ctypes makes the argument of, by the function's ``argtypes``."""
    if value is None or not kind.endswith("*"):
        return value
    assert isinstance(value, Tensor) and value.is_contiguous()
    assert "float" not in kind or value.dtype == torch.float32
    assert "int64_t" not in kind or value.dtype == torch.int64
    return value.data_ptr()


@functools.cache
def _functions() -> dict[str, tuple[Any, dict[str, str]]]:
    """Every function and the kinds of its arguments by name."""
    library = ctypes.CDLL(str(library_path(variant())))
    library.use_parallel(ctypes.c_void_p(_pytorch_parallel()))
    text = re.sub(r"//.*", "", (FOLDER / "native.h").read_text(encoding="utf-8"))
    found = {}
    for name, listed in re.findall(r"\bvoid (\w+)\(([^)]*)\);", text):
        kinds = {argument: kind.strip() for kind, argument in re.findall(r"([\w ]+?[\w*])\s+(\w+)\s*(?:,|$)", listed)}
        call = getattr(library, name)
        call.argtypes = [_KINDS.get(kind, ctypes.c_void_p) for kind in kinds.values()]
        call.restype = None
        found[name] = call, kinds
    return found


def _pytorch_parallel() -> int | None:
    """Address of the entry of the OpenMP library that PyTorch itself uses, or ``None`` where it uses another pool."""
    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    loaded = {line.split()[-1] for line in maps.read_text(encoding="utf-8").splitlines() if "/" in line}
    home = Path(torch.__file__).resolve().parent.parent
    runtimes = [path for path in sorted(loaded) if re.match(r"lib(gomp|iomp5|omp)\b", Path(path).name)]
    # Other packages may have loaded an OpenMP library of their own.
    runtimes.sort(key=lambda path: not path.startswith((f"{home}/torch/", f"{home}/torch.libs/")))
    for path in runtimes:
        entry = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if entry is not None:
            return ctypes.cast(entry, ctypes.c_void_p).value
    return None
