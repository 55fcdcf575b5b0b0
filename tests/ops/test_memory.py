"""What the ``"torch"`` backend keeps for the backward, counted as autograd saves it."""

from __future__ import annotations

import pytest
import torch

from msformer_fast import InputError, MSFormer, nn, segment, self_guiding_losses


def saved_bytes(call, *inputs: torch.Tensor) -> int:
    """Bytes of the distinct tensors that the graph of ``call(*inputs)`` keeps, parameters and inputs included."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = call(*inputs)
    assert outputs is not None
    return sum(kept.values())


@pytest.mark.parametrize(("kind", "wide"), [(nn.MixFFN, 4 * 11), (nn.EfficientAttention, 2 * 9)])
def test_lean_keeps_no_hidden_activations(kind: type, wide: int) -> None:
    """Fast keeps one more map: the hidden one with its two rows of zeros, or keys and queries."""
    c, height, width = 8, 9, 13
    x = torch.rand(1, height, width, c, requires_grad=True)
    fast, lean = (saved_bytes(kind(c, memory=memory, backend="torch"), x) for memory in ("fast", "lean"))
    assert fast - lean == wide * width * c * 4
    reference = saved_bytes(kind(c, backend="reference"), x)
    assert fast < reference / 1.5


def test_nothing_is_kept_where_no_backward_comes() -> None:
    model, x = nn.MixFFN(8, backend="torch"), torch.rand(1, 5, 7, 8)
    with torch.no_grad():
        assert model(x).grad_fn is None
    calls = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "msformer_fast":
                names = [argument.name for argument in func._schema.arguments]
                calls.append(dict(zip(names, args, strict=False))["keep"])
            return func(*args, **(kwargs or {}))

    with Recorder():
        model(x)
        with torch.no_grad():
            model(x)
    assert calls == [True, False]


def test_half_precision_keeps_its_inputs_alone() -> None:
    """Its strips are in float32: hidden activations kept in it would be twice the size of what it is made from."""
    x = torch.rand(1, 9, 13, 8, dtype=torch.bfloat16, requires_grad=True)
    fast, lean = (saved_bytes(nn.MixFFN(8, memory=m, backend="torch").bfloat16(), x) for m in ("fast", "lean"))
    assert fast == lean


def test_a_whole_step_lean_equals_fast() -> None:
    image = torch.rand(1, 3, 20, 17)
    results = []
    for memory in ("fast", "lean"):
        model = MSFormer(3, 6, 7, depth=1, patch=8, seed=2, memory=memory, backend="torch")
        losses = self_guiding_losses(model(image), backend="torch")
        losses.total.backward()
        results.append([losses.total, *(p.grad for n, p in model.named_parameters() if "keys.bias" not in n)])
    for fast, lean in zip(*results, strict=True):
        torch.testing.assert_close(fast, lean, atol=1e-6, rtol=1e-4)


def test_an_unknown_name_is_refused() -> None:
    for call in (
        lambda: MSFormer(memory="small"),
        lambda: nn.MixFFN(4, memory="small")(torch.rand(1, 3, 3, 4)),
        lambda: segment(torch.rand(40, 40), memory="small"),
    ):
        with pytest.raises(InputError, match="memory must be one of fast, lean; got 'small'"):
            call()
