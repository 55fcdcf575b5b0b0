"""A run over many images from Python: every option of ``msformer-fast segment`` as a keyword."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.run import run_cohort
from msformer_fast.cohort.summary import CohortSummary
from msformer_fast.cohort.task import Options
from msformer_fast.errors import InputError
from msformer_fast.presets import DEFAULT, PRESETS
from msformer_fast.prompts.volume import given_prompt

if TYPE_CHECKING:
    import torch  # not at run time: this process only hands out work

_GIGABYTE = 10**9


def segment_cohort(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] = "results",
    *,
    recursive: bool = False,
    resume: bool = True,
    retry_failed: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    threads: int | None = None,
    max_memory: float | None = None,
    too_large: str = "refuse",
    engine: str = "local",
    ray_address: str | None = None,
    axis: int = 2,
    window: Sequence[float] | None = None,
    dicom_seg: bool = False,
    keep_patient: bool = False,
    rule: str = "auto",
    points: Sequence[Any] | None = None,
    not_points: Sequence[Any] | None = None,
    boxes: Sequence[Any] | None = None,
    size: int = PRESETS[DEFAULT].size,
    seed: int = 0,
    seeds: int = 1,
    runs: str | os.PathLike[str] | None = None,
    max_iterations: int = PRESETS[DEFAULT].max_iterations,
    min_labels: int = 3,
    patience: int | None = PRESETS[DEFAULT].patience,
    learning_rate: float = 0.1,
    weights: Sequence[float] | None = None,
    channels: int = 100,
    clusters: int = 100,
    depth: int | tuple[int, int] = 2,
    device: str | torch.device | None = None,
    precision: str | None = PRESETS[DEFAULT].precision,
    memory: str = "fast",
    cross_scale: str = "none",
    backend: str | None = None,
    capture: str = "auto",
    report: Callable[[Line, int, int], object] | None = None,
    notice: Callable[[str], object] | None = None,
) -> CohortSummary:
    """Segment many images into one folder, as ``msformer-fast segment`` does; a run can be stopped and gone on with.

    Options have the names and defaults of the command line, so that either may go on with a run of the other's. Call it
    under ``if __name__ == "__main__":``, since it starts processes that import the caller's main module. What is
    written, and what becomes of volumes: ``docs/how-to/folder.md``.

    Args:
        inputs: one or several: folders, patterns such as ``"scans/**/*.png"``, ``.csv`` lists of paths, image files.
        output: folder; a run of the same settings that is there is gone on with.
        recursive: look into the folders below a folder.
        resume: refuse a folder with a run instead of going on with it, where ``False``.
        retry_failed: do the images again that failed before.
        overwrite: begin anew over a run, or over files of other origin.
        jobs: processes at once; ``None`` for 1, or with GPUs as many as their memory and the cores allow.
        threads: of each; ``None`` to divide the cores.
        max_memory: gigabytes for all processes together; ``None`` for 90 % of what is free.
        too_large: ``"refuse"`` or ``"resize"`` an image whose segmentation would take more.
        engine: ``"local"``, or ``"ray"`` for a Ray cluster.
        ray_address: of the cluster; ``None`` to start one on this machine.
        axis: voxel axis along which NIfTI volumes are sliced: 0, 1 or 2.
        window: centre and width of the grey levels of DICOM and NIfTI files, in place of the files' own.
        dicom_seg: write a DICOM Segmentation of DICOM images too.
        keep_patient: with the patient's data in it.
        points, not_points, boxes: of every image; a list may have columns of its own, which count before these. See
            :func:`msformer_fast.segment`. Of volumes (x, y, z) and (x0, y0, z0, x1, y1, z1), z a slice from 0 on: the
            object is carried from there to the other slices, until it ends (``docs/how-to/volumes.md``).
        rule, size, seed, seeds, runs, max_iterations, min_labels, patience, learning_rate, weights, channels, clusters,
            depth, device, precision, memory, cross_scale, backend, capture: see :func:`msformer_fast.segment`.
        report: called with the line of each image that is through, how many are, and of how many. A line is a mapping:
            ``"source"``, ``"output"``, ``"status"`` (``"done"`` or ``"failed"``), ``"reason"`` and more.
        notice: called with sentences for people.

    Returns:
        The lines of all images, and counts; see :class:`msformer_fast.CohortSummary`.

    Raises:
        InputError: an argument that cannot be used; another run holds the folder, or a run of other settings is there.
        OutputError: an output cannot be written; all that was done before is kept.
        BackendError: see :func:`msformer_fast.segment`.
    """
    options = Options(axis, _pair(window), dicom_seg, keep_patient, too_large)
    options.check()
    prompt = given_prompt(points, not_points, boxes)
    settings = {
        "rule": rule,
        **({} if prompt is None else prompt.as_dict()),
        "size": size,
        "seed": seed,
        "seeds": seeds,
        "runs": None if runs is None else os.fspath(runs),
        "patience": patience,
        "max_iterations": max_iterations,
        "min_labels": min_labels,
        "learning_rate": learning_rate,
        "weights": None if weights is None else list(weights),
        "channels": channels,
        "clusters": clusters,
        "depth": depth,
        "device": None if device is None else str(device),
        "precision": _told(device) if precision is None else precision,
        "memory": memory,
        "cross_scale": cross_scale,
        "backend": backend,
        "capture": capture,
    }
    return run_cohort(
        [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs,
        output,
        settings=settings,
        options=options,
        recursive=recursive,
        resume=resume,
        retry_failed=retry_failed,
        overwrite=overwrite,
        jobs=jobs,
        threads=threads,
        max_memory=bytes_of(max_memory),
        engine=engine,
        ray_address=ray_address,
        report=report,
        notice=notice,
    )


def bytes_of(max_memory: float | None) -> int | None:
    """Gigabytes in bytes. Raises InputError for what is no amount."""
    if max_memory is not None and not (math.isfinite(max_memory) and max_memory > 0):
        raise InputError(f"max_memory: got {max_memory:g}; accepted are gigabytes above 0")
    return None if max_memory is None else int(max_memory * _GIGABYTE)


def _told(device: str | torch.device | None) -> str:
    """The precision that this process's PyTorch was told; the processes that run the network are others."""
    import torch

    from msformer_fast.float32_products import told

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else str(device)
    return told(kind.partition(":")[0])


def _pair(window: Sequence[float] | None) -> tuple[float, float] | None:
    if window is None:
        return None
    if len(window) != 2:
        raise InputError(f"window: got {len(window)} numbers; accepted are a centre and a width above 0")
    return window[0], window[1]
