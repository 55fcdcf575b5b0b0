"""What this installation is and which backend each op would run, for people and for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msformer_fast import ops
from msformer_fast.errors import BackendError
from msformer_fast.float32_products import parts_of_16_bits
from msformer_fast.kernels.native import library
from msformer_fast.ops.backend import BACKENDS
from msformer_fast.version import __version__

_PACKAGES = (
    *("torch", "triton", "einops", "numpy", "scikit-image", "scipy", "pillow", "tqdm"),
    *("scikit-learn", "pydicom", "highdicom", "nibabel", "ray"),
)


def environment() -> dict[str, Any]:
    """Versions, platform, devices, threads and the library of CPU kernels."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "msformer_fast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "torch_cuda": torch.version.cuda or torch.version.hip or "none (CPU build)",
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpu_kernels": library.why_not_built() or f"compiled for {library.variant()}{_matrix_unit()}",
    }


def _matrix_unit() -> str:
    return ", products on its matrix unit (AMX)" if library.use_tiles(parts_of_16_bits()) else ""


def _sample_calls(device: str) -> dict[str, Callable[[str | None], object]]:
    """A small call of each op."""

    def t(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device)

    image = t(1, 9, 9, 8)
    weights = [t(8, 8), t(8)] * 4 + [t(8), t(8)]
    ffn = [t(32, 8), t(32), t(32, 1, 3, 3), t(32), t(8, 32), t(8), t(8), t(8), t(32), t(32)]
    patches = (t(1, 9, 8), t(1, 9, 8))
    return {
        "efficient_attention": lambda b: ops.efficient_attention(image, *weights, backend=b),
        "mix_ffn": lambda b: ops.mix_ffn(image, *ffn, backend=b),
        "cross_scale_attention": lambda b: ops.cross_scale_attention(t(1, 9, 9, 3, 2, 8), None, None, 4, backend=b),
        "score_map": lambda b: ops.score_map(t(1, 5, 5, 8), image, t(32, 8), t(8, 16), backend=b),
        "clustering_loss": lambda b: ops.clustering_loss(image, cluster_dim=-1, backend=b),
        "linear_clustering_loss": lambda b: ops.linear_clustering_loss(image, t(5, 8), backend=b),
        "patch_embedding": lambda b: ops.patch_embedding(t(1, 8, 9, 9), t(8, 128), patch=4, backend=b),
        "guided_score_map": lambda b: ops.guided_score_map(
            t(1, 5, 5, 8), image, t(32, 8), t(8, 16), t(8, 128), t(8), t(8), t(8), patch=4, backend=b
        ),
        "overlap_embedding": lambda b: ops.overlap_embedding(t(1, 3, 9, 9), t(8, 3, 3, 3), stride=2, backend=b),
        "batch_statistics": lambda b: ops.batch_statistics(image, backend=b),
        "stability_loss": lambda b: ops.stability_loss(*patches, backend=b),
    }


def backends(device: str) -> dict[str, dict[str, str]]:
    """For each op and backend ``"runs"`` or the reason why not, tried with a small call on ``device``."""
    table: dict[str, dict[str, str]] = {}
    for op, call in _sample_calls(device).items():
        table[op] = {}
        for backend in BACKENDS:
            try:
                call(backend)
                table[op][backend] = "runs"
            except BackendError as refusal:
                table[op][backend] = str(refusal)
    return table


def report() -> str:
    """The whole report as text."""
    facts = environment()
    lines = [f"msformer_fast {facts['msformer_fast']}   Python {facts['python']}   {facts['platform']}"]
    lines.append("   ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    lines.append(f"CUDA/HIP of torch: {facts['torch_cuda']}   threads: {facts['threads']}")
    lines.append(f"devices: {', '.join(facts['devices'])}")
    lines.append(f"CPU kernels: {facts['cpu_kernels']}")
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        lines.append(f"\nbackends on {device} (the first that runs is the default):")
        for op, table in backends(device).items():
            default = next(name for name, state in table.items() if state == "runs")
            lines.append(f"  {op:<20} {default}")
            lines += [f"    not {name}: {state}" for name, state in table.items() if state != "runs"]
    return "\n".join(lines)
