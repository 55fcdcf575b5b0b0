"""The drop-ins for Swin blocks: made of the block's own parts, hooks included; and what they refuse."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from msformer_fast import InputError, accelerate
from msformer_fast.nn import MonaiSwinBlock, TimmSwinBlock
from tests.swin_blocks import DROP_INS, assert_equal, batch, block_of, monai_swin, results, timm_swin

pytestmark = pytest.mark.usefixtures("drop_ins_compute")


@pytest.mark.parametrize("library", DROP_INS)
def test_the_very_same_parts(library: str) -> None:
    block, extra = block_of(library, (8, 8), (4, 4), (2, 2))
    block.eval()
    block.norm2.weight.requires_grad_(False)
    drop_in = DROP_INS[library].of(block)
    for kind in ("named_parameters", "named_buffers", "named_children"):
        ours, theirs = dict(getattr(drop_in, kind)()), dict(getattr(block, kind)())
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is part for name, part in theirs.items())
    assert not drop_in.training and not drop_in.norm2.weight.requires_grad
    assert drop_in.state_dict().keys() == block.state_dict().keys()
    assert DROP_INS[library].of(block.train()).training
    other, _ = block_of(library, (8, 8), (4, 4), (2, 2))
    x = batch((8, 8))
    drop_in.load_state_dict(other.state_dict())
    torch.testing.assert_close(drop_in(x, *extra), other(x, *extra), rtol=1e-11, atol=1e-11)
    other, _ = block_of(library, (8, 8), (4, 4), (2, 2))
    other.load_state_dict(drop_in.state_dict())
    torch.testing.assert_close(drop_in(x, *extra), other(x, *extra), rtol=1e-11, atol=1e-11)
    assert "shift_size=(2, 2)" in repr(drop_in)


@pytest.mark.parametrize("library", DROP_INS)
def test_random_parts_draw_as_before(library: str) -> None:
    """Drop path, and in a single window of the map's size dropout too: the same numbers for the same elements."""
    drop = "proj_drop" if library == "timm" else "drop"
    block, extra = block_of(library, (4, 6), (4, 6), (0, 0), drop_path=0.5, **{drop: 0.3})
    drop_in, x = DROP_INS[library].of(block), torch.randn(8, 4, 6, 12, dtype=torch.float64)
    torch.manual_seed(7)
    theirs = results(block, x, *extra)
    torch.manual_seed(7)
    assert_equal(results(drop_in, x, *extra), theirs)
    again = results(drop_in, x, *extra)
    assert not torch.equal(again["output"], theirs["output"])


@pytest.mark.parametrize("library", DROP_INS)
def test_hooks(library: str) -> None:
    block, extra = block_of(library, (10, 7), (4, 4), (2, 2))
    x, seen = batch((10, 7)), []
    handle = block.register_forward_hook(lambda *_: seen.append("block"))
    block.register_load_state_dict_pre_hook(lambda module, *_: seen.append(type(module).__name__))
    block.attn.qkv.register_forward_hook(lambda module, inputs, out: out * 2)  # a padded token's too
    theirs, drop_in, kind = results(block, x, *extra), DROP_INS[library].of(block), DROP_INS[library]
    seen.clear()
    assert_equal(results(drop_in, x, *extra), theirs)
    assert seen == ["block"]
    for part in ("attn", "softmax", "attn_drop"):
        module = block.attn if part == "attn" else getattr(block.attn, part)
        looking = module.register_forward_hook(lambda module, inputs, out, part=part: seen.append((part, out.shape[0])))
        assert_equal(results(drop_in, x, *extra), theirs)
        assert seen[1:] == [(part, 2 * 3 * 2), "block"]  # all windows
        looking.remove()
        seen.clear()
        seen.append("block")
    state = block.state_dict()
    del block
    drop_in.load_state_dict(state)
    assert seen == ["block", kind.__name__]
    handle.remove()
    drop_in(x, *extra)
    assert len(seen) == 2


@pytest.mark.parametrize("library", DROP_INS)
def test_copies(library: str) -> None:
    """A deep copy, and a pickled one, are drop-ins that stand alone."""
    block, extra = block_of(library, (10, 7), (4, 4), (2, 2))
    drop_in, x = DROP_INS[library].of(block, backend="reference"), batch((10, 7))
    file = io.BytesIO()
    torch.save(drop_in, file)
    file.seek(0)
    want = results(block, x, *extra)
    for other in (copy.deepcopy(drop_in), torch.load(file, weights_only=False)):
        assert type(other) is DROP_INS[library] and other.backend == "reference"
        assert other.attn.qkv.weight is not block.attn.qkv.weight
        assert_equal(results(other, x, *extra), want)


def test_monais_mask_is_checked() -> None:
    """None is no mask, as in MONAI; any other than compute_mask's is refused."""
    block, (mask,) = block_of("monai", (10, 7), (4, 4), (2, 2))
    drop_in, x = MonaiSwinBlock.of(block), batch((10, 7))
    assert_equal(results(drop_in, x, None), results(block, x, None))
    assert_equal(results(drop_in, x, mask.double()), results(block, x, mask))
    changed = mask.clone()
    changed[0, 0, 5] -= 1
    for wrong in (
        changed,
        mask / 100,
        mask * 0,
        mask < 0,
        mask[:3],
        monai_swin().compute_mask([12, 8], (4, 4), (1, 1), "cpu"),
    ):
        with pytest.raises(InputError, match=r"mask_matrix must be None or compute_mask's for windows of \(4, 4\)"):
            drop_in(x, wrong)
    even = MonaiSwinBlock.of(block_of("monai", (10, 7), (4, 4), (0, 0))[0])
    torch.testing.assert_close(even(x, changed), even(x, None), rtol=0, atol=0)


def test_timms_mask_is_of_one_size() -> None:
    block, _ = block_of("timm", (10, 7), (4, 4), (2, 2))
    drop_in = TimmSwinBlock.of(block)
    drop_in(batch((9, 8)))  # as many windows
    with pytest.raises(InputError, match=r"as many windows as input_resolution \(10, 7\).*got \(4, 2\) of \(13, 7\)"):
        drop_in(batch((13, 7)))
    drop_in.set_input_size((13, 7), (4, 4))
    twin, _ = block_of("timm", (13, 7), (4, 4), (2, 2))
    twin.load_state_dict(drop_in.state_dict())
    x = batch((13, 7))
    assert_equal(results(drop_in, x), results(twin, x))
    drop_in.set_input_size((3, 9), (5, 5))  # another window: another table
    assert drop_in.window_size == (3, 5) and drop_in.shift_size == (0, 2)
    twin, _ = block_of("timm", (3, 9), (5, 5), (2, 2))
    twin.load_state_dict(drop_in.state_dict())
    x = batch((3, 9))
    assert_equal(results(drop_in, x), results(twin, x))
    block, _ = block_of("timm", (10, 7), (4, 4), (2, 2))
    block.attn_mask *= 2
    with pytest.raises(InputError, match="block must have Swin's attn_mask"):
        TimmSwinBlock.of(block)


@pytest.mark.parametrize("library", DROP_INS)
def test_attention_dropout(library: str) -> None:
    """In training the library's own code computes the attention; in evaluation the op."""
    block, extra = block_of(library, (10, 7), (4, 4), (2, 2), attn_drop=0.1)
    drop_in, x = DROP_INS[library].of(block), batch((10, 7))
    torch.manual_seed(7)
    theirs = results(block, x, *extra)
    torch.manual_seed(7)
    ours = results(drop_in, x, *extra)
    assert all(torch.equal(ours[name], want) for name, want in theirs.items())
    assert not torch.equal(drop_in(x, *extra), theirs["output"])
    assert_equal(results(drop_in.eval(), x, *extra), results(block.eval(), x, *extra))


@pytest.mark.parametrize("library", DROP_INS)
def test_a_compiled_call_is_not_taken_over(library: str) -> None:
    """It would run the block."""
    block, _ = block_of(library, (8, 8), (4, 4), (2, 2))
    block.compile(backend="eager")
    assert DROP_INS[library].of(block)._compiled_call_impl is None


def test_other_blocks_are_refused() -> None:
    timm_block, _ = block_of("timm", (8, 8), (4, 4), (2, 2))
    monai_block, _ = block_of("monai", (8, 8), (4, 4), (2, 2))
    for kind, block in ((TimmSwinBlock, monai_block), (MonaiSwinBlock, timm_block)):
        with pytest.raises(InputError, match=r"block must be a SwinTransformerBlock of \w+: .* has no"):
            kind.of(block)
    with pytest.raises(InputError, match="the class Linear may compute something else"):
        TimmSwinBlock.of(torch.nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"x must be \(B, H, W, C\), as the windows, got \(1, 2, 4, 4, 12\)"):
        MonaiSwinBlock.of(monai_block)(torch.randn(1, 2, 4, 4, 12), None)
    timm_block.attn.logit_scale = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(InputError, match="its attention is made of .*logit_scale"):
        TimmSwinBlock.of(timm_block)
    monai_block.forward = lambda x, mask_matrix: x
    with pytest.raises(InputError, match="forward was replaced on it"):
        MonaiSwinBlock.of(monai_block)
    del monai_block.forward
    monai_block.attn.relative_position_index += 1
    with pytest.raises(InputError, match="must have Swin's relative_position_index"):
        MonaiSwinBlock.of(monai_block)


def test_swin_v2_is_no_swin() -> None:
    timm_swin()
    from timm.models.swin_transformer_v2 import SwinTransformerV2Block

    block = SwinTransformerV2Block(12, (8, 8), 3, window_size=4)
    with pytest.raises(InputError, match="the class SwinTransformerV2Block may compute something else"):
        TimmSwinBlock.of(block)
    model = torch.nn.Sequential(block, torch.nn.Linear(3, 3))
    assert len(accelerate(model)) == 0
    assert model[0] is block
