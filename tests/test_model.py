"""The network: sizes, names, seeds, and what it refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from msformer_fast import InputError, LossWeights, MSFormer, consistency_loss, self_guiding_losses
from msformer_fast.kernels.native.library import why_not_built

from .conftest import GOLDEN

kernels = pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="in float64, in the interpreter"
)


@pytest.mark.parametrize(
    ("batch", "in_channels", "height", "width"), [(1, 3, 9, 9), (2, 1, 10, 13), (3, 5, 12, 9), (1, 3, 16, 16)]
)
def test_any_size(batch: int, in_channels: int, height: int, width: int) -> None:
    model = MSFormer(in_channels, 6, 7, depth=(2, 1), patch=8, seed=0)
    scores = model(torch.rand(batch, in_channels, height, width))
    assert scores.logits.shape == (batch, 7, height, width)
    assert scores.context_fine.shape == scores.context_coarse.shape == (batch, 6, 6)
    patches = ((height - 1) // 8) * ((width - 1) // 8)
    assert scores.queries.shape == scores.keys.shape == (batch, patches, 6)
    losses = self_guiding_losses(scores)
    losses.total.backward()
    assert losses.labels.shape == (batch, height, width)
    assert losses.label_count.shape == (batch,)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@kernels
@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize(("batch", "height", "width"), [pytest.param(1, 17, 20, marks=pytest.mark.slow), (2, 18, 11)])
def test_a_step_through_the_kernels_equals_the_reference(batch: int, height: int, width: int) -> None:
    """Every loss, label, gradient and running statistic in float64, and the scores after the step."""
    images = torch.rand(batch, 3, height, width, dtype=torch.float64)
    results = []
    for backend in ("triton", "reference"):
        model = MSFormer(3, 6, 7, depth=(2, 1), patch=8, seed=3, backend=backend).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scores = model(images)
        losses = self_guiding_losses(scores, backend=backend)
        assert (scores.clustering is not None) == (backend == "triton")
        losses.total.backward()
        gradients = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        with torch.no_grad():
            after = model(images, stability=False).logits
        results.append({**losses._asdict(), **gradients, **dict(model.named_buffers()), "after": after})
    for name, wanted in results[1].items():
        torch.testing.assert_close(results[0][name], wanted, rtol=1e-8, atol=1e-10, msg=name)


@kernels
@pytest.mark.usefixtures("strict_kernels")
def test_no_operator_of_an_op_is_left_to_pytorch() -> None:
    """Beside the kernels a step is the running statistics and the optimiser."""
    from msformer_fast.benchmarks.aten_traffic import AtenTraffic

    model = MSFormer(3, 6, 7, depth=1, patch=8, seed=0, backend="triton")
    image = torch.rand(1, 3, 17, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    with AtenTraffic() as counted:
        self_guiding_losses(model(image), backend="triton").total.backward()
        optimizer.step()
    for name in counted.calls:
        assert "convolution" not in name, name
        assert "norm" not in name and "softmax" not in name and "gelu" not in name, name
        assert name not in ("mm", "bmm", "addmm", "matmul", "argmax"), name


@pytest.mark.slow
@kernels
@pytest.mark.usefixtures("strict_kernels")
def test_compiled_through_the_kernels_it_equals_eager() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = MSFormer(3, 6, 7, depth=1, patch=8, seed=0, backend="triton").double()

    def total(image: torch.Tensor) -> torch.Tensor:
        return self_guiding_losses(model(image), backend="triton").total

    compiled = torch.compile(total, fullgraph=True, backend=counter)
    image = torch.rand(1, 3, 17, 20, dtype=torch.float64)
    eager, ours = (torch.autograd.grad(call(image), list(model.parameters())) for call in (total, compiled))
    for (name, _), value, wanted in zip(model.named_parameters(), ours, eager, strict=True):
        torch.testing.assert_close(value, wanted, msg=name)
    assert model.bn3.num_batches_tracked == 2
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "folds"),
    [
        (lambda model: None, True),
        (lambda model: model.eval(), False),
        (lambda model: setattr(model.bn3, "momentum", None), False),
        (lambda model: setattr(model.bn3, "momentum", 0.3), False),
        (lambda model: setattr(model, "bn3", torch.nn.SyncBatchNorm(7)), False),
        (lambda model: setattr(model, "backend", "torch"), False),
        (lambda model: setattr(model, "backend", None), why_not_built() is None),
        (lambda model: model.bn2_s[0].register_forward_hook(lambda *given: None), False),
    ],
)
def test_what_is_folded(change: Callable[[MSFormer], None], folds: bool) -> None:
    """Batch norms are left to the next op's reads only where each does just what the kernels do."""
    model = MSFormer(3, 6, 7, depth=1, patch=8, seed=0, backend="triton")
    change(model)
    assert model._folds(torch.rand(1, 3, 17, 20)) == folds


def test_a_batch_is_the_mean_of_its_images() -> None:
    """Where norms do not mix the images (evaluation mode), each loss of a batch is the mean over the images."""
    model = MSFormer(3, 6, 7, depth=1, patch=8, seed=1).double().eval()
    images = torch.rand(3, 3, 17, 20, dtype=torch.float64)
    together = self_guiding_losses(model(images))
    alone = [self_guiding_losses(model(image[None])) for image in images]
    for name in ("total", "clustering", "consistency", "stability"):
        mean = torch.stack([getattr(losses, name) for losses in alone]).mean()
        torch.testing.assert_close(getattr(together, name), mean)


def test_state_dict_is_the_authors() -> None:
    with np.load(GOLDEN / "dim8_img65.npz") as archive:
        shapes = {name[6:]: archive[name].shape for name in archive.files if name.startswith("param/")}
    model = MSFormer(3, 8, 8, depth=1)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes


def test_a_seed_draws_pytorchs_defaults_in_the_authors_order() -> None:
    torch.manual_seed(5)
    plain = MSFormer(3, 4, 4, depth=1, patch=2)
    before = torch.random.get_rng_state()
    seeded = MSFormer(3, 4, 4, depth=1, patch=2, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, seeded.state_dict()[name]), name
    other = MSFormer(3, 4, 4, depth=1, patch=2, seed=6)
    assert not torch.equal(other.linear_up.weight, plain.linear_up.weight)

    torch.manual_seed(5)
    first = torch.nn.Conv2d(3, 4, 3)
    second = torch.nn.Conv2d(3, 4, 3)
    keys = torch.nn.Conv2d(4, 4, 1)
    assert torch.equal(first.weight, plain.patch_embed_s.proj.weight)
    assert torch.equal(second.weight, plain.patch_embed_l.proj.weight)
    assert torch.equal(keys.weight, plain.block_s[0].attn.keys.weight)


def test_parameters_and_gradients_of_every_batch_norm_count() -> None:
    model = MSFormer(3, 4, 4, depth=1, patch=4, seed=0)
    model(torch.rand(1, 3, 9, 9))
    for name in ("patch_embed_s.norm", "patch_embed_l.norm", "bn2_s.0", "bn2_l.0", "bn3"):
        norm = model.get_submodule(name)
        assert norm.num_batches_tracked == 1, name
        assert norm.running_mean.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"clusters": 1}, "clusters must be at least 2"),
        ({"depth": (1, 0)}, r"depth \(coarse\)"),
        ({"patch": 0}, "patch must be at least 1"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MSFormer(**arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 3, 8, 20), r"patch \+ 1 = 9 pixels high and wide; got 8 x 20"),
        (torch.rand(1, 4, 20, 20), r"\(B, 3, H, W\)"),
        (torch.rand(3, 20, 20), r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.uint8), "floating point"),
    ],
)
def test_images_that_do_not_fit(image: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MSFormer(3, 4, 4, depth=1, patch=8)(image)


def test_consistency_loss() -> None:
    a = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    b = torch.tensor([[[0.0, 2.0], [6.0, 8.0]]])
    torch.testing.assert_close(consistency_loss(a, b), torch.tensor(0.5))
    torch.testing.assert_close(consistency_loss(a, -a), torch.tensor(2.0))
    zero = torch.zeros(1, 1, 2, requires_grad=True)
    consistency_loss(zero, torch.ones(1, 1, 2)).backward()
    assert zero.grad.isfinite().all()
    with pytest.raises(InputError, match="must both be"):
        consistency_loss(a, b[:, :1])


@pytest.mark.parametrize("weights", [(-1.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0, float("inf"))])
def test_weights_are_checked(weights: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="finite number, 0 or more"):
        LossWeights(*weights).check()


def test_losses_need_the_patch_embedding() -> None:
    scores = MSFormer(3, 4, 4, depth=1, patch=4, seed=0)(torch.rand(1, 3, 9, 9), stability=False)
    assert scores.queries is None
    with pytest.raises(InputError, match="stability=True"):
        self_guiding_losses(scores)
