"""The memory of segmenting one image, predicted before it is begun, and what memory there is. PyTorch is not loaded."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msformer_fast.errors import InputError
from msformer_fast.images import MIN_SIDE, fit_size
from msformer_fast.kernels.native import is_compiled
from msformer_fast.limits import CLUSTERING_LOSS_CLUSTERS, EFFICIENT_ATTENTION_CHANNELS, MIX_FFN_CHANNELS
from msformer_fast.presets import DEFAULT, PRESETS

# Resident bytes of a worker that has loaded what it needs, readers of DICOM and NIfTI too, and has tried its settings
# on a few pixels: 640 MB measured (PyTorch 2.13 for CPUs, one or two threads), a tenth more here.
_PROCESS = 700 * 10**6
# On top of what is counted: what no tensor holds. A step at 257 pixels took 9 to 17 % more than its tensors.
_MARGIN, _SCRATCH = 1.15, 64 * 10**6
# Bytes a pixel of the image around the network: 62 of three channels measured, where the mask is everywhere, as the
# overlay is drawn; 12 for each of many channels as they are read and copied. 15 % more. And what depends on no size.
_DRAWN, _EACH, _COPIES, _AROUND = 58, 4.6, 14, 16 * 10**6
# Bytes a channel of a pixel that wait beside the loop: the image as it was read, and as the network was given it.
_WAITING = 8
# Bytes a pixel of the network's map, for each run: kept scores, labels, their vote; and while the mask is chosen.
_RUN, _CHOOSING = 64, 600


# What a step holds beside parameters and momentum, at the two moments of which one is the peak: in the head (many
# clusters) and in a block (many channels). Coefficients of features_of, fitted from above to counts of tensors without
# data by msformer_fast.benchmarks.memory_terms, which writes this file; tests hold it to other counts.
_TERMS: dict[str, list[list[float]]] = json.loads((Path(__file__).parent / "memory_terms.json").read_text())
MODES = tuple(_TERMS)
#: Bytes of 4 C hidden activations that are made at a time, where a backend makes rows of them or has scratch memory.
BUFFER = {"torch": 4.2e6, "triton": 25e6}
# Modes in which PyTorch differentiates an expression, with T x T matrices of the T patches.
_EXPRESSIONS = "reference", "expression"


def step_bytes(
    height: int,
    width: int,
    *,
    channels: int = 100,
    clusters: int = 100,
    depth: int | tuple[int, int] = 2,
    memory: str = "fast",
    backend: str | None = None,
    device: str = "cpu",
    cross_scale: str = "none",
) -> int:
    """Peak bytes of the self-guided loop, in float32, above what the process has before: parameters, momentum,
    gradients, activations.

    With H W pixels, as many fine tokens and a quarter of them coarse, it is a sum of terms in H W C, H W K, C tokens in
    every block, and parameters: the larger of two moments. It is at most 2 % under the exact count and, from 129 pixels
    on, at most 40 % over (smaller images: or 64 MB). Not counted, and left to the margin of :func:`predicted_bytes`:
    scratch memory inside an operator (oneDNN, MKL, cuDNN), the allocator's rounding and fragmentation, stacks of
    threads.

    Args:
        height, width: pixels that the network sees.
        channels, clusters, depth, memory, backend, cross_scale: see :class:`msformer_fast.MSFormer`.
        device: of the kind ``"cpu"`` or ``"cuda"``, which choose a backend where it is ``None``.
    """
    sizes = {"channels": channels, "clusters": clusters, "depth": depth, "cross_scale": cross_scale}
    return _step(height, width, {**sizes, "memory": memory, "backend": backend, "device": device})


def _step(height: int, width: int, settings: Mapping[str, Any]) -> int:
    above = most(mode_of(settings), features_of(height, width, settings))
    if _exchanges(settings):
        above += most(f"{_kind(settings)} window", window_features_of(height, width, settings))
    wide = 2 if settings.get("dtype", "float32") == "float64" else 1
    return int(held_bytes(height, width, settings) + above) * wide


def most(mode: str, features: Sequence[float]) -> float:
    """Bytes at the moment of the peak."""
    return max(sum(map(operator.mul, terms, features)) for terms in _TERMS[mode])


def terms_of(mode: str) -> list[list[float]]:
    """Coefficients of :func:`features_of`, at each moment."""
    return _TERMS[mode]


def held_bytes(height: int, width: int, settings: Mapping[str, Any]) -> int:
    """Parameters and momentum of 4 bytes each, buffers, the image; and the T x T matrices of an expression, which need
    no fitting either."""
    given = settings.get
    c, k, patch, exchanges = given("channels", 100), given("clusters", 100), given("patch", 32), _exchanges(settings)
    held = sum(_depths(settings)) * (96 * c**2 + 512 * c + 8) + 32 * c**2 + 504 * c + 24 * k + 24
    held += 8 * k * c * (patch**2 + 2) + 12 * height * width
    held += exchanges * (64 * c**2 + 128 * c + 3136 * math.gcd(c, 4))
    if _kind(settings) in _EXPRESSIONS:
        patches = max(1, (height - 1) // patch) * max(1, (width - 1) // patch)
        held += 5 * 4 * patches**2
    return int(held)


def features_of(height: int, width: int, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """What the memory of a step grows with.

    Returns:
        In this order: channels of every pixel (tokens and gradients around the blocks, the head); clusters of every
        pixel (logits, their gradient, losses); channels of every token in every block (what the backward reads, 4 C
        hidden activations above all); tokens of the blocks (statistics); bytes of the patch embedding's weight; C
        squared (weights folded, sums of programs); C (strips); 1; bytes of rows of hidden activations made at a time.
    """
    given = settings.get
    c, k, patch = given("channels", 100), given("clusters", 100), given("patch", 32)
    pixels, (fine, coarse) = height * width, _depths(settings)
    tokens = fine * pixels + coarse * _coarse(height, width)
    rows = min(16 * c * pixels, BUFFER.get(_kind(settings), 0))
    return c * pixels, k * pixels, c * tokens, tokens, 4 * patch**2 * k * c, c**2, c, 1, rows


def window_features_of(height: int, width: int, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """What windows across scales add memory with: channels and clusters of a pixel, whose norms are maps of their own,
    channels and heads of a token in every exchange."""
    c, k, pixels = settings.get("channels", 100), settings.get("clusters", 100), height * width
    tokens = _exchanges(settings) * (pixels + _coarse(height, width))
    return c * pixels, k * pixels, c * tokens, math.gcd(c, 4) * tokens


def _coarse(height: int, width: int) -> int:
    return (height + 1) // 2 * ((width + 1) // 2)


def _depths(settings: Mapping[str, Any]) -> tuple[int, int]:
    depth = settings.get("depth", 2)
    return (depth, depth) if isinstance(depth, int) else depth


def _exchanges(settings: Mapping[str, Any]) -> int:
    return min(_depths(settings)) if settings.get("cross_scale", "none") == "window" else 0


def _kind(settings: Mapping[str, Any]) -> str:
    """The mode without its memory."""
    return mode_of(settings).split()[0]


def mode_of(settings: Mapping[str, Any]) -> str:
    """Backend and memory, as the fitted terms are called."""
    backend, memory, gpu = settings.get("backend"), settings.get("memory", "fast"), _on_gpu(settings)
    if backend is None:
        channels, clusters = settings.get("channels", 100), settings.get("clusters", 100)
        small = channels <= min(MIX_FFN_CHANNELS, EFFICIENT_ATTENTION_CHANNELS) and clusters <= CLUSTERING_LOSS_CLUSTERS
        kernels = (small if gpu else is_compiled()) and settings.get("dtype", "float32") != "float64"
        backend = "torch" if not kernels else "triton" if gpu else "native"
    # The reference keeps all, the CPU's kernels keep little; the "torch" backend works in strips on the CPU alone, else
    # PyTorch does by an expression.
    kept = "fast" if backend in ("reference", "native") and memory == "lean" else memory
    mode = f"{'expression' if backend == 'torch' and gpu else backend} {kept}"
    if mode not in _TERMS:
        accepted = "triton, native, torch or reference, and fast or lean"
        raise InputError(f"backend and memory: got {backend!r} and {memory!r}; accepted are {accepted}")
    return mode


def _on_gpu(settings: Mapping[str, Any]) -> bool:
    return str(settings.get("device") or "cpu").partition(":")[0] != "cpu"


def image_bytes(height: int, width: int, *, channels: int = 3) -> int:
    """Peak bytes of everything around the network at the image's own size: decoding, float32 (H, W, C), resizing,
    labels and mask enlarged, the overlay drawn, PNGs written. From measured bytes a pixel, and 15 %."""
    each = max(_DRAWN + _EACH * channels, _COPIES * channels)
    return int(height * width * each) + _AROUND


def predicted_bytes(shape: tuple[int, int], network_size: tuple[int, int], settings: Mapping[str, Any]) -> int:
    """Peak bytes of segmenting one image, from file to files, above what the process has before; with a margin.

    On a CPU: while the loop runs, the image waits beside it; what comes before and after the loop takes the place that
    the loop frees. On a GPU, whose memory is another, the larger of both: neither memory has to hold more.

    Args:
        shape: (H, W) of the image. network_size: (h, w) that the network sees.
        settings: those of a :class:`msformer_fast.Segmentation`; what is missing is the default. Without a device
            it is the CPU.

    Raises:
        InputError: no such backend or memory.
    """
    height, width = network_size
    around = image_bytes(*shape)
    waiting = 3 * _WAITING * shape[0] * shape[1]
    kept = _RUN * settings.get("seeds", 1) * height * width
    loop = max(_step(height, width, settings), _CHOOSING * height * width) + kept
    if _on_gpu(settings):
        return max(int(_MARGIN * loop) + _SCRATCH, around + kept)
    return max(int(_MARGIN * loop) + _SCRATCH + waiting, around + kept)


def network_bytes(settings: Mapping[str, Any], device: str) -> int:
    """:func:`step_bytes` of the largest image that ``settings`` let the network see; of 1025 pixels where they set no
    size: images may be larger, and are then judged one by one."""
    side = settings.get("size", PRESETS[DEFAULT].size) or 1025
    return int(_MARGIN * _step(side, side, {**settings, "device": device})) + _SCRATCH


def process_bytes() -> int:
    """Resident bytes of a worker process with PyTorch loaded, before any image: measured, with a margin."""
    return _PROCESS


def largest_size(shape: tuple[int, int], budget: int, settings: Mapping[str, Any]) -> int | None:
    """The longest side for :func:`msformer_fast.images.fit_size`, at most the image's own, that fits the budget.

    ``shape`` and ``settings`` as :func:`predicted_bytes` takes them. ``None`` if not even the smallest fits.
    """
    short, long = sorted(shape)
    low, high = max(settings.get("patch", 32) + 1, MIN_SIDE), long
    low = math.ceil((2 * low - 1) * long / (2 * short))  # the short side must be so long

    def fits(size: int) -> bool:
        return predicted_bytes(shape, fit_size(*shape, size), settings) <= budget

    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the system has available, or what its control groups (version 2
    and 1) leave, where that is less. Where neither is told: what psutil says, else all of the machine's memory, else
    2**62. Never raises.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    found = [*_available(root), *_left_by_groups(root)]
    return max(0, min(found)) if found else _elsewhere()


def _available(root: Path) -> Iterator[int]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            with contextlib.suppress(IndexError, ValueError):
                yield 1024 * int(line.split()[1])


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each group leaves, from the process's own up to the root of what is mounted."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"
            names = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mounts = (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/memory")
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for mount in mounts:
            for length in range(len(parts), -1, -1):
                yield from _left_by(mount.joinpath(*parts[:length]), *names)


def _left_by(group: Path, limit_name: str, used_name: str, reclaimable_name: str) -> Iterator[int]:
    with contextlib.suppress(ValueError):  # no such group, or a limit of "max"
        left = int(_read(group / limit_name)) - int(_read(group / used_name))
        stat = [line.split() for line in _read(group / "memory.stat").splitlines()]
        yield left + sum(int(words[1]) for words in stat if words[:1] == [reclaimable_name] and len(words) == 2)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _elsewhere() -> int:
    with contextlib.suppress(Exception):  # not installed, or it knows no more than we do
        import psutil  # type: ignore[import-untyped, unused-ignore]

        return int(psutil.virtual_memory().available)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return 2**62
