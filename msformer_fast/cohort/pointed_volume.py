"""A volume in which something is pointed at: segmented where it is, and carried from slice to slice until it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msformer_fast.cohort.task import PROMPTS, Task
from msformer_fast.cohort.volume_slice import segment_slice
from msformer_fast.formats import ImageFile
from msformer_fast.prompts.prompt import Prompt
from msformer_fast.prompts.volume import Beginning, VolumePrompt

if TYPE_CHECKING:
    from msformer_fast.segmentation import Segmentation

#: Mask (H, W) bool, labels (H, W) unsigned, and record of a slice.
Slice: TypeAlias = tuple[NDArray[np.bool_], NDArray[Any], Mapping[str, Any]]


def pointed_slices(
    file: ImageFile,
    prompt: VolumePrompt,
    task: Task,
    kept: Path,
    callback: Callable[[Any], Any] | None,
    record: Callable[[Segmentation], dict[str, Any]],
) -> list[Slice]:
    """Mask, labels and record of every slice of a volume; those that no object reaches are empty, and not segmented.

    Every object goes up and down from the slices in which it was pointed at, until it ends, or meets another such slice
    of its own; between two of them it is what was carried from either. What does not hang together with a slice in
    which it was pointed at is left out.

    Args:
        prompt: checked.
        kept: a folder, in which the network's runs wait until the volume is done.
        record: makes a slice's record.
    """
    walk = _Walk(file, prompt, task, kept / "runs", callback)
    masks = np.zeros((file.frames, *file.shape), dtype=bool)
    made: dict[int, Segmentation] = {}
    for beginning in prompt.beginnings(file.frames):
        own, begun = np.zeros_like(masks), np.zeros_like(masks)
        for index, result in walk.of(beginning):
            own[index] |= result.mask
            if index in beginning.prompts:
                begun[index] = result.mask
            # Of several objects in a slice, or an object from both sides, the least sure one speaks.
            before = made.get(index)
            if before is None or result.foreground.confidence < before.foreground.confidence:
                made[index] = result
        masks |= _joined(own, begun)
    blank = np.zeros(file.shape, dtype=np.uint8)
    return [
        (masks[index], made[index].labels, record(made[index]) | {"pixels": int(masks[index].sum())})
        if index in made
        else (masks[index], blank, {"beyond": True})
        for index in range(file.frames)
    ]


@dataclass(frozen=True)
class _Walk:
    """Goes through the slices of a volume.

    ``runs``: the folder in which the network's runs are kept, since a slice may be come to from both sides.
    """

    file: ImageFile
    prompt: VolumePrompt
    task: Task
    runs: Path
    callback: Callable[[Any], Any] | None

    def of(self, beginning: Beginning) -> Iterator[tuple[int, Segmentation]]:
        """The slices that hold an object, with what was found in each; some from two sides."""
        for index, prompt in sorted(beginning.prompts.items()):
            pixels = self.file.read(index)
            first = self._segment(index, pixels, **_arguments(prompt))
            if first is None:
                continue
            yield index, first
            for step in (-1, 1):
                yield from self._onwards(beginning, index, step, pixels, first)

    def _onwards(
        self, beginning: Beginning, index: int, step: int, pixels: NDArray[np.float32], found: Segmentation
    ) -> Iterator[tuple[int, Segmentation]]:
        from msformer_fast.prompts.carry import Neighbour

        while found.mask.any():
            index += step
            if not beginning.first <= index < beginning.beyond or index in beginning.prompts:
                return
            neighbour = Neighbour(pixels, found.mask, beginning.box)
            not_points = self.prompt.not_points_of(index)
            given = {"not_points": not_points} if not_points else {}
            pixels = self.file.read(index)
            next_one = self._segment(index, pixels, neighbour=neighbour, **given)
            if next_one is None:
                return
            found = next_one
            if found.mask.any():
                yield index, found

    def _segment(self, index: int, pixels: NDArray[np.float32], **arguments: Any) -> Segmentation | None:
        """What was found in a slice; ``None`` in one without contrast."""
        settings = {name: value for name, value in self.task.settings.items() if name not in PROMPTS}
        settings |= arguments
        if settings.get("runs") is None:
            settings["runs"] = str(self.runs)
        return segment_slice(self.file, index, pixels, self.callback, **settings)


def _arguments(prompt: Prompt) -> dict[str, Any]:
    return {name: value for name, value in prompt.as_dict().items() if value}


def _joined(masks: NDArray[np.bool_], begun: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of masks (F, H, W) that hang together in space with what was pointed at."""
    from scipy import ndimage

    parts, _ = ndimage.label(masks)
    return np.asarray(np.isin(parts, np.unique(parts[begun & masks])))
