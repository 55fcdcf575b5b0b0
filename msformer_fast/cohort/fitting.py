"""Whether an image fits into the memory that there is, before anything of it is decoded; if not, what size would."""

from __future__ import annotations

import math
from typing import Any

from msformer_fast.cohort.memory import image_bytes, largest_size, predicted_bytes
from msformer_fast.cohort.task import Task
from msformer_fast.errors import InputError
from msformer_fast.files import show
from msformer_fast.formats import ImageFile
from msformer_fast.images import MIN_SIDE, fit_size, refuse_small

_GIGABYTE = 10**9
# Bytes that each voxel of a volume waits in: as it is stored, mask and labels twice as they are put together.
_VOXEL = 12


def fitted(file: ImageFile, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings, with a size that the memory can hold; and what to say of it. Nothing is decoded for it where the
    header tells the size.

    Raises:
        InputError: it would take more than ``task.budget``; names what would fit.
    """
    settings = dict(task.settings)
    refuse_small(*file.shape, MIN_SIDE, show(task.path))
    network_size = fit_size(*file.shape, settings["size"])
    if task.budget is None:
        return settings, {}
    from msformer_fast.settings import choose_device

    device = choose_device(settings.get("device"))
    known = settings | {"device": str(device)}
    budget = task.budget
    if device.type == "cuda" and image_bytes(*file.shape) <= budget:  # then the GPU's memory is what counts
        budget = _free_on_gpu(device)
    stack = _VOXEL * file.frames * math.prod(file.shape) if file.is_volume else 0
    needed = predicted_bytes(file.shape, network_size, known) + stack
    if needed <= budget:
        return settings, {}
    size = largest_size(file.shape, budget - stack, known)
    has = f"would take {needed / _GIGABYTE:.1f} GB of memory and {budget / _GIGABYTE:.1f} GB are there"
    if size is None or size >= max(network_size):
        what = " x ".join(map(str, (*((file.frames,) if file.is_volume else ()), *file.shape)))
        raise InputError(f"{show(task.path)}: {what} pixels {has}; try fewer jobs, or a smaller image")
    if task.options.too_large == "refuse":
        raise InputError(
            f"{show(task.path)}: size {max(network_size)} {has}; size {size} fits, or fewer jobs, or memory='lean'"
        )
    return settings | {"size": size}, {"resized": f"size {max(network_size)} {has}: done at size {size}"}


def _free_on_gpu(device: Any) -> int:
    import torch

    free: int = torch.cuda.mem_get_info(device)[0]
    return free + torch.cuda.memory_reserved(device)  # what this process has taken serves the next image too
