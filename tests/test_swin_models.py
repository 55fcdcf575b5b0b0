"""Whole Swin models with their blocks swapped: the same results, gradients and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch

from msformer_fast import accelerate
from msformer_fast.nn import MonaiSwinBlock, TimmSwinBlock
from tests.swin_blocks import assert_equal, block_of, monai_swin, results, timm_swin

pytestmark = pytest.mark.usefixtures("drop_ins_compute")


def timm_model(**options) -> torch.nn.Module:
    """Grids 17 x 24, 9 x 12, 5 x 6, 3 x 3: no side divides but one, and the last two are below the window."""
    timm_swin()
    import timm

    return timm.create_model("swin_tiny_patch4_window7_224", img_size=(68, 96), num_classes=5, **options).double()


def monai_model(**options) -> torch.nn.Module:
    """Maps of 32 x 48, 16 x 24, 8 x 12 and 4 x 6 behind the patches."""
    return monai_swin().SwinUNETR(1, 2, feature_size=12, spatial_dims=2, **options).double()


MODELS = {"timm": (timm_model, (3, 68, 96), 12), "monai": (monai_model, (1, 64, 96), 8)}


def random_tables(model: torch.nn.Module) -> None:
    """Of a size that shows in the result, and biases too, which padded tokens carry."""
    for name, parameter in model.named_parameters():
        if name.endswith(("relative_position_bias_table", "qkv.bias")):
            torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("library", MODELS)
def test_a_swapped_model(library: str) -> None:
    make, shape, count = MODELS[library]
    model = make()
    random_tables(model)
    x = torch.randn(2, *shape, dtype=torch.float64)
    torch.manual_seed(3)  # of drop path: the model is in training
    theirs, state = results(model, x), copy.deepcopy(model.state_dict())
    blocks = {name for name, module in model.named_modules() if type(module).__name__ == "SwinTransformerBlock"}
    parameters = list(model.parameters())
    names = [name for swap in accelerate(model).swapped for name in swap.names]
    assert set(names) == blocks and len(names) == count
    assert all(isinstance(model.get_submodule(name), (TimmSwinBlock, MonaiSwinBlock)) for name in names)
    assert all(ours is want for ours, want in zip(model.parameters(), parameters, strict=True))
    assert len(accelerate(model)) == 0
    for swapped in (model, copy.deepcopy(model)):
        torch.manual_seed(3)
        assert_equal(results(swapped, x), theirs, 1e-9)
    assert list(model.state_dict()) == list(state)
    fresh = make().eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        want = fresh(x)
    other = make().eval()
    accelerate(other, backend="reference")
    other.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(other(x), want, rtol=1e-10, atol=1e-10)


def test_timms_input_size_follows() -> None:
    """Any size with ``strict_img_size=False``; another size, window and table with ``set_input_size``."""
    model = timm_model(strict_img_size=False, embed_dim=24, depths=(2, 2, 2, 2)).eval()
    random_tables(model)
    swapped = copy.deepcopy(model)
    assert len(accelerate(swapped)) == 8
    for size in ((68, 96), (44, 132)):
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(swapped(x), model(x), rtol=1e-10, atol=1e-10)
    x = torch.randn(1, 3, 52, 40, dtype=torch.float64)
    for each in (model, swapped):
        each.set_input_size((52, 40), window_size=5)
    torch.testing.assert_close(swapped(x), model(x), rtol=1e-10, atol=1e-10)
    swapped.set_grad_checkpointing()
    assert_equal(results(swapped, x), results(model, x), 1e-10)


def test_monais_weights_load_through_the_drop_ins() -> None:
    """``SwinUNETR.load_from`` calls each block's own ``load_from``."""
    model, source = monai_model(), {}
    accelerate(model)
    block, _ = block_of("monai", (8, 8), (7, 7), (3, 3), heads=3)
    root, names = "module.layers1.0.blocks.0.", {"mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}
    for key, value in block.state_dict().items():
        part, _, kind = key.rpartition(".")
        source[f"{root}{names.get(part, part)}.{kind}"] = value
    drop_in = model.swinViT.layers1[0].blocks[0]
    drop_in.load_from({"state_dict": source}, n_block="0", layer="layers1")
    for key, value in drop_in.state_dict().items():
        assert torch.equal(value, block.state_dict()[key])


def test_blocks_of_another_make_stay() -> None:
    """With the reason, and the others are replaced; a shared one in both places by one."""
    good, _ = block_of("monai", (8, 8), (4, 4), (0, 0))
    volume = monai_swin().SwinTransformerBlock(12, 3, (2, 4, 4), (1, 2, 2))
    volume.window_size = (2, 2, 4, 4)
    model = torch.nn.ModuleDict({"flat": torch.nn.ModuleList([good, good]), "deep": torch.nn.Sequential(volume)})
    swaps = accelerate(model, backend="reference")
    assert model["deep"][0] is volume
    assert [str(left) for left in swaps.left] == [
        "deep.0: SwinTransformerBlock of MONAI; it must have windows of 2 or 3 axes, got 2 x 2 x 4 x 4"
    ]
    assert [swap.names for swap in swaps.swapped] == [("flat.0", "flat.1")]
    assert model["flat"][0] is model["flat"][1] and model["flat"][0].backend == "reference"
