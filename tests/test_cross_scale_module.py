"""Windowed attention between two scales: the modules, and MSFormer's option."""

from __future__ import annotations

import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from msformer_fast import InputError, MSFormer, nn, phantom, segment, self_guiding_losses
from msformer_fast.cli import main
from msformer_fast.images import write_png
from msformer_fast.reference.cross_scale_attention import cross_scale_attention as reference
from msformer_fast.windows import windows_of

kernels = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="in float64, in the interpreter"
)

#: Options of the module, and the sizes of x and of the context.
CASES = {
    "default": ({}, (19, 24), (10, 12)),
    "shift, halo": ({"window": 4, "shift": 2, "halo": 1}, (9, 13), (5, 7)),
    "pairs": ({"window": (4, 2), "shift": (2, 0), "halo": (0, 2), "num_heads": 3}, (7, 10), (4, 5)),
    "ratio 2": ({"window": 3, "shift": 1, "ratio": 2}, (5, 8), (9, 16)),
    "ratio 1/4": ({"window": 8, "shift": 4, "ratio": (1, 4)}, (18, 13), (5, 4)),
    "ratio 2/3": ({"window": 3, "ratio": Fraction(2, 3)}, (9, 12), (6, 8)),
    "one map": ({"window": 4, "shift": 2, "ratio": 1}, (9, 11), (9, 11)),
    "no biases": ({"window": 4, "bias": False, "qkv_bias": False}, (8, 12), (4, 6)),
    "below a window": ({"window": 8, "shift": 4}, (5, 11), (3, 6)),
}


def build(*sizes: int, **options: object) -> nn.CrossScaleAttention:
    """A module in float64 whose output projection is drawn, so that the attention shows."""
    return awake(nn.CrossScaleAttention(*sizes, **options).double())


def awake(module: torch.nn.Module) -> torch.nn.Module:
    for part in module.modules():
        if isinstance(part, nn.CrossScaleAttention):
            part.proj.reset_parameters()
            if part.relative_position_bias_table is not None:
                torch.nn.init.normal_(part.relative_position_bias_table)
    return module


def plain(module: nn.CrossScaleAttention, x: Tensor, context: Tensor, shift: tuple[int, int]) -> Tensor:
    """The module by hand, through the reference."""
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:], module.norm.weight, module.norm.bias)
    q = torch.nn.functional.linear(normed, module.q.weight, module.q.bias)
    normed = torch.nn.functional.layer_norm(
        context, context.shape[-1:], module.norm_context.weight, module.norm_context.bias
    )
    # The first half of the rows of the packed projection makes the keys.
    weights = module.kv.weight.chunk(2)
    biases = (None, None) if module.kv.bias is None else module.kv.bias.chunk(2)
    k, v = (torch.nn.functional.linear(normed, w, b) for w, b in zip(weights, biases, strict=True))
    heads = module.num_heads
    q, k, v = (t.reshape(*t.shape[:-1], heads, t.shape[-1] // heads) for t in (q, k, v))
    windows = windows_of("plain", x.shape[1:3], context.shape[1:3], module.window, module.halo, shift)
    attended = reference(q, k, v, windows, q.shape[-1] ** -0.5, bias=module.relative_position_bias_table)
    return x + attended.flatten(3) @ module.proj.weight.T + module.proj.bias


@pytest.mark.parametrize(
    ("case", "backend"),
    [(case, backend) for case in CASES for backend in ("torch", "reference")]
    + [pytest.param(case, "triton", marks=kernels) for case in ("ratio 2", "no biases", "below a window")],
)
def test_it_is_the_reference_behind_norms_and_projections(case: str, backend: str, strict_kernels: None) -> None:
    """Result and every gradient; x and context have their own channels."""
    options, size, context_size = CASES[case]
    module = build(12, 5, backend=backend, **options)
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, *context_size, 5, dtype=torch.float64, requires_grad=True)
    shift = (0, 4) if case == "below a window" else module.shift
    upstream = torch.randn_like(x)
    results = []
    for y in (module(x, context), plain(module, x, context, shift)):
        leaves = {"x": x, "context": context, **dict(module.named_parameters())}
        gradients = torch.autograd.grad((y * upstream).sum(), list(leaves.values()))
        results.append({"y": y, **dict(zip(leaves, gradients, strict=True))})
    for name, wanted in results[1].items():
        torch.testing.assert_close(results[0][name], wanted, rtol=1e-9, atol=1e-11, msg=name)
        assert wanted.abs().max() > 1e-6, name


def test_channels_split_into_heads_in_order() -> None:
    """With one head's values zero, its channels are all that the projection misses."""
    module = build(8, num_heads=2, window=2)
    with torch.no_grad():
        module.kv.weight[8:12] = 0
        module.kv.bias[8:12] = 0
        module.proj.weight[:] = torch.eye(8)
        module.proj.bias[:] = 0
    x, context = torch.randn(1, 4, 6, 8).double(), torch.randn(1, 2, 3, 8).double()
    added = module(x, context) - x
    assert torch.equal(added[..., :4], torch.zeros_like(added[..., :4]))
    assert (added[..., 4:] != 0).all()


@pytest.mark.parametrize(
    ("pixel", "halo", "rows", "columns"),
    [
        ((3, 4), 0, (0, 8), (8, 16)),  # a corner of the docstring's ``#``
        ((3, 4), 1, (0, 16), (0, 16)),  # in the halo of three other windows too
        ((4, 3), 1, (0, 16), (0, 16)),  # the docstring's ``o`` below it on the left
        ((1, 9), 1, (0, 8), (16, 24)),  # just beyond the ``o``
    ],
)
def test_what_a_window_sees(pixel: tuple[int, int], halo: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """One coarse pixel changes: just the fine pixels of the windows that see it change."""
    module = build(4, halo=halo)
    x, context = torch.randn(1, 16, 24, 4).double(), torch.randn(1, 8, 12, 4).double()
    before = module(x, context)
    context[0, pixel[0], pixel[1], 0] += 10
    changed = (module(x, context) != before).any(-1)[0]
    wanted = torch.zeros(16, 24, dtype=torch.bool)
    wanted[rows[0] : rows[1], columns[0] : columns[1]] = True
    assert torch.equal(changed, wanted)


def test_it_starts_as_the_identity_and_learns() -> None:
    """The first step moves the output projection; from then on every parameter has a gradient."""
    module = nn.CrossScaleAttention(8, window=4, shift=2)
    names = {name for name, _ in module.named_parameters()}
    parts = {f"{part}.{kind}" for part in ("norm", "norm_context", "q", "kv", "proj") for kind in ("weight", "bias")}
    assert names == parts | {"relative_position_bias_table"}
    table = module.relative_position_bias_table
    assert table.shape == (6 * 6, 4)  # query row - 2 key row, from -2 to 3
    assert 0.01 < table.std() < 0.03

    x, context = torch.randn(1, 9, 12, 8), torch.randn(1, 5, 6, 8)
    target, optimizer = torch.randn_like(x), torch.optim.SGD(module.parameters(), lr=0.5)
    losses = []
    for step in range(3):
        y = module(x, context)
        if step == 0:
            assert torch.equal(y, x)
        loss = (y - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        moved = {name for name, p in module.named_parameters() if p.grad.abs().sum() > 0}
        assert moved == ({"proj.weight", "proj.bias"} if step == 0 else names)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize(("height", "width"), [(17, 22), (9, 4), (2, 3)])
def test_two_ways_at_once(height: int, width: int) -> None:
    """Each direction is the module of its own, on the maps as they came; halos and shifts cover the same areas."""
    module = awake(nn.TwoWayCrossScaleAttention(8, 4, window=(8, 4), shift=(4, 2), halo=1, num_heads=2).double())
    assert (module.fine.window, module.fine.shift, module.fine.halo) == ((8, 4), (4, 2), (1, 1))
    assert (module.coarse.window, module.coarse.shift, module.coarse.halo) == ((4, 2), (2, 1), (2, 2))
    fine = torch.randn(2, height, width, 8, dtype=torch.float64)
    coarse = torch.randn(2, (height + 1) // 2, (width + 1) // 2, 4, dtype=torch.float64)
    new_fine, new_coarse = module(fine, coarse)
    shift = 4 * (height > 8), 2 * (width > 4)
    torch.testing.assert_close(new_fine, plain(module.fine, fine, coarse, shift))
    shift = 2 * (coarse.shape[1] > 4), coarse.shape[2] > 2
    torch.testing.assert_close(new_coarse, plain(module.coarse, coarse, fine, shift))


def test_compiled_it_equals_eager() -> None:
    torch._dynamo.reset()
    module = awake(nn.TwoWayCrossScaleAttention(8, window=4, shift=2).double())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    fine, coarse = torch.randn(1, 9, 14, 8).double(), torch.randn(1, 5, 7, 8).double()
    for ours, wanted in zip(compiled(fine, coarse), module(fine, coarse), strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide the 8 channels, got 3"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"context_channels": 0}, "context_channels must be at least 1"),
        ({"window": 7}, "window 7 .* the nearest that fit: 6 and 8"),
        ({"window": 8, "shift": 3}, "shift .* move whole keys"),
        ({"window": 8, "shift": 8}, "shift .* less than the window 8"),
        ({"halo": -1}, "halo must be at least 0"),
        ({"ratio": 0}, "ratio must be a positive fraction"),
        ({"ratio": (1, 0)}, r"ratio must be a positive fraction, .* got \(1, 0\)"),
        ({"ratio": "half"}, "ratio must be a positive fraction"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^CrossScaleAttention: {message}"):
        nn.CrossScaleAttention(8, **arguments)


@pytest.mark.parametrize(
    ("x", "context", "message"),
    [
        ((1, 8, 8, 8), (1, 8, 4, 5), "context must have 1/2 times the height of x, .* got 8 for 8, read as 1"),
        ((1, 8, 8, 8), (1, 4, 2, 5), "context must have 1/2 times the width of x, .* got 2 for 8, read as 1/4"),
        ((1, 8, 8, 7), (1, 4, 4, 5), r"x must have shape \(B, H, W, 8\)"),
        ((1, 8, 8, 8), (1, 4, 4, 8), r"context must have shape \(B, Hc, Wc, 5\)"),
        ((1, 8, 8, 8), (2, 4, 4, 5), "context must have shape .* with B = 1"),
    ],
)
def test_maps_that_do_not_fit(x: tuple[int, ...], context: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"^CrossScaleAttention: {message}"):
        nn.CrossScaleAttention(8, 5)(torch.rand(x), torch.rand(context))


def test_the_option_leaves_the_papers_network_alone() -> None:
    """The same parameters by the same seed, the same generator state, the same scores to the bit before any step (where
    batch norms are not folded into what reads them)."""
    torch.manual_seed(5)
    options = {"depth": 2, "patch": 8, "seed": 4, "backend": "torch"}
    paper, ours = (MSFormer(3, 6, 7, **options, cross_scale=c) for c in ("none", "window"))
    after = torch.random.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(after, torch.random.get_rng_state())
    with_option = ours.state_dict()
    for name, value in paper.state_dict().items():
        assert torch.equal(value, with_option[name]), name
    added = with_option.keys() - paper.state_dict().keys()
    assert added and all(name.startswith("cross.") for name in added)
    assert not any(name.startswith("cross") for name in paper.state_dict())
    again = MSFormer(3, 6, 7, depth=2, patch=8, seed=4, cross_scale="window").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in with_option.items())

    image = torch.rand(2, 3, 17, 22)
    for a, b in zip(paper(image)[:5], ours(image)[:5], strict=True):
        assert torch.equal(a, b)
    assert "cross_scale='window'" in repr(ours)


def test_the_option_stands_behind_every_common_block() -> None:
    """By hand: blocks and exchanges in turn, windows of 8 pixels, shifted every other time."""
    model = awake(MSFormer(3, 6, 7, depth=(3, 2), patch=8, seed=0, cross_scale="window").double())
    assert [exchange.fine.shift for exchange in model.cross] == [(0, 0), (4, 4)]
    assert all(exchange.fine.window == (8, 8) and exchange.coarse.window == (4, 4) for exchange in model.cross)
    assert model.cross[0].fine.num_heads == 2
    image = torch.rand(1, 3, 19, 26, dtype=torch.float64)
    scores = model(image)

    fine, coarse = model.patch_embed_s(image), model.patch_embed_l(image)
    for index in range(3):
        fine, context_fine = model.block_s[index](fine)
        fine = model.bn2_s[index](fine.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if index < 2:
            coarse, context_coarse = model.block_l[index](coarse)
            coarse = model.bn2_l[index](coarse.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            fine, coarse = model.cross[index](fine, coarse)
    up = model.linear_up(coarse).unflatten(-1, (2, 2, 6)).permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    logits = model.linear_down(torch.cat((up[:, :19, :26], fine), -1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(scores.logits, logits)
    torch.testing.assert_close(scores.context_fine, context_fine)
    torch.testing.assert_close(scores.context_coarse, context_coarse)


@pytest.mark.parametrize(("channels", "height", "width"), [(8, 9, 9), (7, 10, 23)])
def test_small_and_odd_images(channels: int, height: int, width: int) -> None:
    """Down to patch + 1 pixels; gradients reach every parameter."""
    model = awake(MSFormer(3, channels, 7, depth=2, patch=8, seed=0, cross_scale="window"))
    self_guiding_losses(model(torch.rand(1, 3, height, width))).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name.startswith("cross.0"):
            assert parameter.grad.abs().sum() > 0, name


@kernels
@pytest.mark.usefixtures("strict_kernels")
def test_a_step_through_the_kernels_equals_the_reference() -> None:
    image, results = torch.rand(1, 3, 5, 10, dtype=torch.float64), []
    for backend in ("triton", "reference"):
        model = MSFormer(3, 4, 5, depth=1, patch=4, seed=3, cross_scale="window", backend=backend).double()
        torch.manual_seed(1)
        awake(model)
        # The batch norms behind the blocks are read by the exchange, so none is folded.
        assert not model._folds(image)
        losses = self_guiding_losses(model(image), backend=backend)
        losses.total.backward()
        results.append({**losses._asdict(), **{name: p.grad for name, p in model.named_parameters()}})
    for name, wanted in results[1].items():
        torch.testing.assert_close(results[0][name], wanted, rtol=1e-8, atol=1e-10, msg=name)


SMALL = {"channels": 6, "clusters": 8, "depth": 1, "size": 49, "max_iterations": 3, "device": "cpu"}


def test_the_option_through_segment() -> None:
    """It is recorded, it repeats, and after the first step it is another network."""
    image = phantom.lesion((60, 55), seed=3)[0]
    none, first, again = (segment(image, cross_scale=c, **SMALL) for c in ("none", "window", "window"))
    assert json.loads(json.dumps(first.as_dict()))["settings"]["cross_scale"] == "window"
    assert none.settings["cross_scale"] == segment(image, **SMALL).settings["cross_scale"] == "none"
    totals = [[iteration.total for iteration in result.history] for result in (none, first, again)]
    assert totals[1] == totals[2]
    assert totals[0][0] == totals[1][0]
    assert totals[0][2] != totals[1][2]
    assert np.array_equal(first.labels, again.labels)


def test_an_unknown_name_is_refused() -> None:
    message = "cross_scale must be one of none, window; got 'global'"
    for call in (lambda: MSFormer(cross_scale="global"), lambda: segment(torch.rand(40, 40), cross_scale="global")):
        with pytest.raises(InputError, match=message):
            call()


def test_the_option_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both commands take it and record it; another name is one line."""
    image, truth = phantom.lesion((60, 75), seed=1)
    for folder, pixels in (("images", (image * 255).astype(np.uint8)), ("masks", truth)):
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / "mole.png", pixels)
    options = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--quiet", "--cross-scale"]
    source, out = str(tmp_path / "images" / "mole.png"), tmp_path / "out"
    assert main(["segment", source, "-o", str(out / "one"), *options, "window"]) == 0
    record = json.loads((out / "one" / "mole.json").read_text())
    folders = [str(tmp_path / "images"), str(tmp_path / "masks")]
    assert main(["evaluate", *folders, "-o", str(out / "all"), *options, "window"]) == 0
    table = json.loads((out / "all" / "evaluation.json").read_text())
    assert record["settings"]["cross_scale"] == table["settings"]["cross_scale"] == "window"
    capsys.readouterr()
    assert main(["segment", source, "-o", str(out / "two"), *options, "global"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cross_scale must be one of none, window" in err
