"""What ``accelerate`` does to whole networks, as a table: ``python -m tests.harness.swap_table``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import msformer_fast as mf
from tests.test_accelerate import NETWORKS, batch, results


def row(name: str) -> str:
    """Network, modules swapped, largest differences, whether the state dict stays and the way back is exact."""
    model = NETWORKS[name][0]()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    image = batch()
    model = model.double()
    before = results(model, image.double())
    swaps = mf.accelerate(model)
    worst = _largest(results(model, image.double()), before)
    model.load_state_dict(state)
    same = list(model.state_dict()) == list(state)
    swaps.undo()
    exact = dict(model.named_modules()) == modules
    model.load_state_dict(state)
    model.float()
    single = _outputs(model, image)
    with mf.accelerate(model):
        rounding = _largest(_outputs(model, image), single)
    kinds = ", ".join(f"{sum(s.kind == kind for s in swaps.swapped)} {kind}" for kind in _kinds(swaps))
    answers = " | ".join("yes" if answer else "NO" for answer in (same, exact))
    return f"| {name} | {kinds} | {worst:.0e} | {rounding:.0e} | {answers} |"


def _kinds(swaps: mf.Swaps) -> list[str]:
    return list(dict.fromkeys(swap.kind for swap in swaps.swapped))


def _outputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    model.eval()
    with torch.no_grad():
        out = model(image)
    return {str(i): value for i, value in enumerate((out,) if isinstance(out, Tensor) else out)}


def _largest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    least = 1e-3 * max(float(value.abs().max()) for value in theirs.values())
    return max(
        float((ours[name] - want).abs().max()) / max(float(want.abs().max()), least) for name, want in theirs.items()
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    print("| network | swapped | loss and gradients, float64 | outputs, float32 | state dict equal | undo exact |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in NETWORKS:
        print(row(each))
