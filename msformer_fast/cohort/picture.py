"""A file of one image: segmented, and its outputs written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msformer_fast.cohort.journal import Line
from msformer_fast.cohort.results import of_run, with_notes, write_dicom_seg, write_thumbnail
from msformer_fast.cohort.task import Task
from msformer_fast.formats import ImageFile


def write_image(
    file: ImageFile,
    pixels: NDArray[np.float32],
    task: Task,
    target: Path,
    line: Line,
    callback: Callable[[Any], Any] | None,
) -> tuple[list[Path], Line]:
    """Segment the image of ``pixels``, which were read already; see :func:`msformer_fast.cohort.job.segment_file`."""
    from msformer_fast.outputs import save_segmentation
    from msformer_fast.overlay import overlay
    from msformer_fast.segmentation import segment

    result = segment(pixels, modality=file.modality, callback=callback, **task.settings)
    chosen = result.foreground
    line = line | {
        "confidence": round(chosen.confidence, 4),
        "doubtful": chosen.doubtful,
        "reason": chosen.reason,
        "rule": chosen.rule,
        "pixels": int(result.mask.sum()),
        "image_size": list(result.mask.shape),
        "network_size": list(result.network_size),
        "iterations": len(result.history),
        "label_count": int(np.unique(result.labels).size),
        "stopped": result.stopped,
        "device": result.settings["device"],
        "seconds": round(result.seconds, 3),
    }
    line = with_notes(line, file)
    name = os.path.basename(task.name)
    paths = []
    if task.options.dicom_seg:
        paths.append(write_dicom_seg(file, result.mask[None], target / f"{name}_mask.dcm", task.options))
    picture = overlay(pixels, result.mask)
    if task.run is not None:
        write_thumbnail(task, picture)
    more = {key: line[key] for key in ("notes",) if key in line} | of_run(task, line)
    paths += save_segmentation(result, task.path, target, name=name, picture=picture, more=more)
    return paths, line
