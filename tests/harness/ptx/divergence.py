"""Where the lanes of a warp that took different branches meet again."""

from __future__ import annotations

import numpy as np


def meetings(code: np.ndarray, branches: np.ndarray, ends: np.ndarray) -> dict[int, int]:
    """For each branch that not all lanes need take: the first instruction that every way from it passes, -1 for none.

    These are the immediate postdominators of the blocks that end in it, found by the usual fixed point of sets.

    Args:
        code: the program's instructions.
        branches, ends: indices of those that jump, and of those that end a thread.
    """
    jumps = {int(i): int(code[i]["target"]) for i in branches}
    starts = sorted({0, *jumps.values(), *(i + 1 for i in jumps), *(int(i) + 1 for i in ends)} - {len(code)})
    number = {start: i for i, start in enumerate(starts)}
    lasts = [*(start - 1 for start in starts[1:]), len(code) - 1]

    after: list[list[int]] = []
    for last in lasts:
        sure = code[last]["guard"] < 0
        if last in jumps:
            after.append([number[jumps[last]], *([] if sure else [number[last + 1]])])
        elif last in ends and sure:
            after.append([])
        else:
            after.append([number[last + 1]])

    passes = _blocks_passed(after)
    found = {}
    for i, last in enumerate(lasts):
        if last in jumps and len(after[i]) == 2:
            rest = passes[i] & ~(1 << i)
            candidates = [j for j in range(len(starts)) if rest >> j & 1]
            found[last] = starts[max(candidates, key=lambda j: passes[j].bit_count())] if candidates else -1
    return found


def _blocks_passed(after: list[list[int]]) -> list[int]:
    """For each block the set (bits of an integer) of those that every way from it to an end passes, itself too."""
    everything = (1 << len(after)) - 1
    passes = [everything if follow else 1 << i for i, follow in enumerate(after)]
    changed = True
    while changed:
        changed = False
        for i in reversed(range(len(after))):
            if after[i]:
                both = everything
                for follow in after[i]:
                    both &= passes[follow]
                if both | 1 << i != passes[i]:
                    passes[i], changed = both | 1 << i, True
    return passes
