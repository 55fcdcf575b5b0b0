"""What ``accelerate`` does to whole networks, as a table: ``python -m tests.harness.swap_table``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import msformer_fast as mf
from tests.harness.differences import differences
from tests.harness.networks import NETWORKS, batch, results


def row(name: str) -> str:
    """Network, modules swapped, largest differences, whether the state dict stays and the way back is exact."""
    model = NETWORKS[name][0]()
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    image = batch()
    model = model.double()
    before = results(model, image.double())
    swaps = mf.accelerate(model, backend="torch")
    worst = max(differences(results(model, image.double()), before).values())
    model.load_state_dict(state)
    same = list(model.state_dict()) == list(state)
    swaps.undo()
    exact = dict(model.named_modules()) == modules
    model.load_state_dict(state)
    model.float()
    single = _outputs(model, image)
    with mf.accelerate(model, backend="torch"):
        rounding = max(differences(_outputs(model, image), single).values())
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


if __name__ == "__main__":
    torch.manual_seed(0)
    print("| network | swapped | loss and gradients, float64 | outputs, float32 | state dict equal | undo exact |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in NETWORKS:
        print(row(each))
