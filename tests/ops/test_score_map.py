"""Special cases of the score map and of what its losses read of it, beyond the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from msformer_fast import BackendError, InputError, ops
from msformer_fast.floors import guided_score_map as guided_floor
from msformer_fast.floors import score_map as floor

from .cases import OPS
from .draws import Inputs

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("strict_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE != "cpu", reason="counted, or in float64, in the interpreter")
SIZES = {"B": 2, "H": 9, "W": 12, "C": 20, "K": 33, "E": 20, "patch": 4, "batch_norm": True}


def draw(op: str, dtype: torch.dtype, **changed: Any) -> tuple[Inputs, dict[str, Any]]:
    sizes = SIZES | changed
    return {k: v.to(DEVICE, dtype).requires_grad_() for k, v in OPS[op].draw(sizes).items()}, sizes


def grads_of(outputs: tuple[Tensor, ...], inputs: Inputs) -> tuple[Tensor, ...]:
    total = sum((o.square().sum() for o in outputs[:4] if o.is_floating_point()), torch.zeros(()))
    return torch.autograd.grad(total, list(inputs.values()))


@pytest.fixture
def many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card with more multiprocessors than there are tiles: several partial sums for every sum."""
    for module in ("score_map", "patch_embedding"):
        monkeypatch.setattr(f"msformer_fast.kernels.{module}.multiprocessors_of", lambda device: 40)


@interpreted
@pytest.mark.usefixtures("many_programs")
@pytest.mark.parametrize("batch_norm", [True, False])
def test_sums_over_many_programs(batch_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from msformer_fast.kernels import score_map as table

    for part, row in table.INTERPRETER.items():
        monkeypatch.setitem(table.INTERPRETER, part, (16, 16, *row[2:]))
    inputs, sizes = draw("guided_score_map", torch.float64, H=17, W=14, batch_norm=batch_norm)
    results = []
    for backend in ("triton", "reference"):
        outputs = OPS["guided_score_map"].run(inputs, sizes, backend)
        results.append((*outputs, *grads_of(outputs, inputs)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@interpreted
@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(card, marks=pytest.mark.slow) for card in ("sm_80", "sm_120", "gfx942"))]
)
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "highest"), (torch.float32, "high"), (torch.float16, "")]
)
def test_settings_of_the_cards(
    target: str, dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the launch table, in pieces and several blocks, give what the interpreter's own give."""
    inputs, sizes = draw("guided_score_map", dtype, H=11, W=9, K=40, C=34)
    before = torch.get_float32_matmul_precision()
    results = []
    try:
        torch.set_float32_matmul_precision(precision or before)
        for name in (None, target):
            monkeypatch.setattr("msformer_fast.kernels.score_map.target_of", lambda device, name=name: name)
            outputs = OPS["guided_score_map"].run(inputs, sizes, "triton")
            results.append((*outputs, *grads_of(outputs, inputs)))
    finally:
        torch.set_float32_matmul_precision(before)
    loose = 1e-4 if precision == "highest" else 2e-2  # tf32 has float16's epsilon
    for ours, theirs in zip(*results, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=loose, atol=loose * scale)


@pytest.mark.parametrize("backend", ["triton", "native", "torch"])
def test_it_is_the_three_ops(backend: str) -> None:
    """Labels, count and statistics are those of the logits that are returned."""
    inputs, sizes = draw("guided_score_map", torch.float32)
    names = ("coarse", "fine", "up_weight", "head_weight", "patch_weight", "patch_bias", "norm_weight", "norm_bias")
    found = ops.guided_score_map(*(inputs[name] for name in names), patch=sizes["patch"], backend=backend)
    logits = ops.score_map(*(inputs[name] for name in names[:4]), backend=backend).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.logits, logits)
    rest = None if backend == "native" else backend
    loss, labels, count = ops.clustering_loss(found.logits, backend=rest)
    torch.testing.assert_close(found.loss, loss)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.label_count, count)
    affine = [inputs[name] for name in names[4:]]
    for ours, theirs in zip(
        (found.queries, found.keys),
        ops.patch_embedding(found.logits, *affine, patch=sizes["patch"], backend=rest),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    var, mean = torch.var_mean(found.logits.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.var.double(), var, rtol=1e-5, atol=1e-6)
    assert not (found.mean.requires_grad or found.var.requires_grad)


@pytest.mark.usefixtures("many_programs")
def test_statistics_keep_their_digits() -> None:
    """Clusters whose logits are far from 0 and nearly constant, where E[x^2] - E[x]^2 in float32 has no digit left."""
    clusters, channels = 6, 5
    fine = torch.randn(1, 40, 33, channels, device=DEVICE)
    fine[..., 0] = 1
    head = torch.randn(clusters, 2 * channels, device=DEVICE) * torch.logspace(-3, 1, clusters, device=DEVICE)[:, None]
    head[:, channels] = torch.linspace(-900, 900, clusters, device=DEVICE)
    coarse, up = torch.randn(1, 20, 17, channels, device=DEVICE), torch.randn(4 * channels, channels, device=DEVICE)
    patch = torch.randn(3, 64 * clusters, device=DEVICE)
    norm = torch.ones(clusters, device=DEVICE), torch.zeros(clusters, device=DEVICE)
    found = ops.guided_score_map(coarse, fine, up, head, patch, None, *norm, patch=8, backend="triton")
    var, mean = torch.var_mean(found.logits.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.var.double(), var, rtol=1e-4, atol=0)


def test_no_images() -> None:
    inputs, sizes = draw("guided_score_map", torch.float32, B=0, batch_norm=False)
    outputs = OPS["guided_score_map"].run(inputs, sizes, "triton")
    assert outputs[0].shape == (0, 33, 9, 12)
    assert outputs[1].isnan()  # the mean over no pixel, as in PyTorch
    assert outputs[4].shape == (0, 9, 12)
    for name, gradient in zip(inputs, torch.autograd.grad(outputs[2].sum(), list(inputs.values())), strict=True):
        assert gradient.shape == inputs[name].shape
        assert not gradient.isnan().any() or name in ("norm_weight", "norm_bias")


@interpreted
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_some_results_are_used(wanted: int) -> None:
    """Gradients that are not there count as zero: of the logits alone, of the loss alone, of the queries alone."""
    inputs, sizes = draw("guided_score_map", torch.float64)
    leaves = list(inputs.values())
    found = [
        torch.autograd.grad(
            OPS["guided_score_map"].run(inputs, sizes, backend)[wanted].square().sum(),
            leaves,
            allow_unused=True,
            materialize_grads=True,
        )
        for backend in ("triton", "reference")
    ]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"C": 257, "H": 5, "W": 5}, "256 channels, got 257"), ({"K": 257, "H": 5, "W": 5}, "256 clusters, got 257")],
)
def test_limits_are_refused(changed: dict[str, int], message: str) -> None:
    inputs, sizes = draw("guided_score_map", torch.float32, batch_norm=False, E=4, **changed)
    with pytest.raises(BackendError, match=f"guided_score_map: .*at most {message}"):
        OPS["guided_score_map"].run(inputs, sizes, "triton")


def test_shapes_are_checked() -> None:
    inputs, sizes = draw("guided_score_map", torch.float32, batch_norm=False)
    with pytest.raises(InputError, match=r"guided_score_map: coarse must be ceil\(H / 2\)"):
        OPS["guided_score_map"].run(inputs | {"coarse": inputs["coarse"][:, 1:]}, sizes, "triton")
    with pytest.raises(InputError, match="guided_score_map: patch_weight must be"):
        OPS["guided_score_map"].run(inputs | {"patch_weight": inputs["patch_weight"][:, 1:]}, sizes, "triton")
    norm = ops.BatchNorm(*(torch.ones(19, device=DEVICE) for _ in range(4)), eps=1e-5)
    heads = [inputs[name] for name in ("coarse", "fine", "up_weight", "head_weight")]
    with pytest.raises(InputError, match="score_map: fine_norm.weight must have shape"):
        ops.score_map(*heads, fine_norm=norm)


@interpreted
@pytest.mark.parametrize("batch_norm", [True, False])
def test_bytes_are_those_of_recorded_launches(batch_norm: bool) -> None:
    """Counted for every kernel; the maps and the logits are moved no more often than the floor says."""
    from tests.harness.traffic import counted_as_recorded, kernels_of

    sizes: dict[str, Any] = {}

    def call() -> Iterator[None]:
        inputs, s = draw("guided_score_map", torch.float32, batch_norm=batch_norm)
        sizes.update(s)
        yield
        outputs = OPS["guided_score_map"].run(inputs, s, "triton")
        yield
        torch.autograd.grad(outputs[1] + outputs[2].sum() + outputs[3].square().sum(), list(inputs.values()))
        yield

    forward, _ = counted_as_recorded(call)
    head = [sizes[name] for name in "BHWCK"]
    least = guided_floor.bytes_moved(*head, sizes["E"], sizes["patch"], torch.float32, batch_norms=batch_norm)
    moved = {name: loaded + stored for name, (_, loaded, stored) in kernels_of(forward).items()}
    assert moved.pop("fold_kernel") > 0  # of parameters, which at these sizes are as large as the maps
    assert sum(moved.values()) < 1.2 * least["forward"]
    assert floor.bytes_moved(*head, torch.float32, batch_norms=batch_norm)["forward"] < least["forward"]
