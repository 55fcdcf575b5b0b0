"""The modules: parameters under the published names, and a call of the op."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from msformer_fast import BackendError, MSFormer, nn, ops


def names(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def test_clustering_loss_trains_any_model() -> None:
    """On a user's own convolution: the loss falls, labels and counts are the model's."""
    torch.manual_seed(0)
    model, criterion = torch.nn.Conv2d(3, 6, 3, padding=1), nn.ClusteringLoss()
    optimizer, image = torch.optim.SGD(model.parameters(), lr=1.0), torch.rand(2, 3, 9, 11)
    losses = []
    for _ in range(5):
        loss, labels, count = criterion(model(image))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert labels.shape == (2, 9, 11)
    assert count.shape == (2,)
    logits = torch.randn(2, 4, 5, 6)
    pixels, _, _ = nn.ClusteringLoss(reduction="none", cluster_dim=-1)(logits)
    torch.testing.assert_close(pixels, logits.logsumexp(-1) - logits.amax(-1))
    assert "reduction='none', cluster_dim=-1" in repr(nn.ClusteringLoss(reduction="none", cluster_dim=-1))


def test_stability_loss_behind_its_patch_embedding() -> None:
    embed, criterion = nn.PatchEmbedding(clusters=5, channels=7, patch=4), nn.StabilityLoss(scale=3.0)
    assert names(embed) == {"norm.weight", "norm.bias", "proj.weight", "proj.bias"}
    logits = torch.randn(2, 5, 9, 14, requires_grad=True)
    queries, keys = embed(logits)
    assert queries.shape == keys.shape == (2, 6, 7)
    loss = criterion(queries, keys)
    torch.testing.assert_close(loss, ops.stability_loss(queries, keys, scale=3.0))
    loss.backward()
    assert logits.grad is not None
    assert all(p.grad is not None for p in embed.parameters())
    assert int(embed.norm.num_batches_tracked) == 1
    before = embed.norm.running_mean.clone()
    embed.eval()(logits)
    assert torch.equal(before, embed.norm.running_mean)
    assert int(embed.norm.num_batches_tracked) == 1
    assert "scale=3.0" in repr(criterion)


def test_patch_embedding_counts_as_batch_norm_does() -> None:
    """The same running statistics as the torch module it holds, momentum included."""
    embed, plain = nn.PatchEmbedding(3, 4, patch=2), torch.nn.BatchNorm2d(3, momentum=0.4)
    embed.norm.momentum = 0.4
    logits = torch.randn(2, 3, 5, 6)
    embed(logits)
    plain(logits)
    torch.testing.assert_close(embed.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(embed.norm.running_var, plain.running_var)


def test_efficient_attention_on_a_feature_map() -> None:
    attention = nn.EfficientAttention(6, key_channels=4, value_channels=8, num_heads=2)
    assert names(attention) == {
        f"{part}.{kind}" for part in ("keys", "queries", "values", "reprojection") for kind in ("weight", "bias")
    }
    y, context = attention(torch.randn(2, 5, 7, 6))
    assert y.shape == (2, 5, 7, 6)
    assert context.shape == (2, 2, 2, 4)


@pytest.mark.parametrize("inner_skip", [True, False])
def test_mix_ffn(inner_skip: bool) -> None:
    ffn = nn.MixFFN(4, 10, inner_skip=inner_skip)
    expected = {"fc1.weight", "fc1.bias", "dwconv.dwconv.weight", "dwconv.dwconv.bias", "fc2.weight", "fc2.bias"}
    assert names(ffn) == expected | ({"norm1.weight", "norm1.bias"} if inner_skip else set())
    t = torch.randn(2, 5, 7, 4)
    u = ffn.fc1(t)
    v = ffn.dwconv.dwconv(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    v = ffn.norm1(v + u) if ffn.norm1 is not None else v
    torch.testing.assert_close(ffn(t), ffn.fc2(F.gelu(v)))


def test_block_and_score_map() -> None:
    block = nn.EfficientTransformerBlock(4)
    y, context = block(torch.randn(2, 5, 7, 4))
    assert y.shape == (2, 5, 7, 4)
    assert context.shape == (2, 4, 4)
    head = nn.ScoreMap(4, 9)
    assert names(head) == {"linear_up.weight", "linear_down.weight"}
    assert head(torch.randn(2, 3, 4, 4), y).shape == (2, 9, 5, 7)


def test_a_backend_by_name_is_asked_for() -> None:
    with pytest.raises(BackendError, match='mix_ffn: backend="triton" takes at most 256 channels, got 257'):
        nn.MixFFN(257, 4, backend="triton")(torch.randn(1, 3, 3, 257))


#: Every module with parameters, small.
FACTORIES = {
    "CrossScaleAttention": lambda **f: nn.CrossScaleAttention(4, 6, window=4, num_heads=2, **f),
    "EfficientAttention": lambda **f: nn.EfficientAttention(4, num_heads=2, **f),
    "EfficientTransformerBlock": lambda **f: nn.EfficientTransformerBlock(4, **f),
    "MSFormer": lambda **f: MSFormer(3, 4, 5, depth=1, patch=4, cross_scale="window", **f),
    "MSFormer of a seed": lambda **f: MSFormer(3, 4, 5, depth=1, patch=4, seed=0, **f),
    "MixFFN": lambda **f: nn.MixFFN(4, 6, **f),
    "OverlapEmbedding": lambda **f: nn.OverlapEmbedding(3, 4, stride=2, **f),
    "PatchEmbedding": lambda **f: nn.PatchEmbedding(5, 4, patch=2, **f),
    "ScoreMap": lambda **f: nn.ScoreMap(4, 5, **f),
    "TwoWayCrossScaleAttention": lambda **f: nn.TwoWayCrossScaleAttention(4, window=4, num_heads=2, **f),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_parameters_are_created_where_and_as_asked_for(name: str) -> None:
    """``device`` and ``dtype`` of every parameter and buffer, and the same numbers as without."""
    on_meta = FACTORIES[name](device="meta", dtype=torch.bfloat16)
    for key, value in on_meta.state_dict().items():
        assert value.device.type == "meta", key
        assert value.dtype == (torch.bfloat16 if value.is_floating_point() else torch.int64), key
    torch.manual_seed(0)
    plain = FACTORIES[name]().state_dict()
    torch.manual_seed(0)
    for key, value in FACTORIES[name](device="cpu").state_dict().items():
        assert torch.equal(value, plain[key]), key


def test_a_seed_is_one_network_in_every_dtype() -> None:
    single, double = (FACTORIES["MSFormer of a seed"](dtype=dtype) for dtype in (torch.float32, torch.float64))
    for key, value in single.state_dict().items():
        assert torch.equal(value.to(double.state_dict()[key].dtype), double.state_dict()[key]), key


def test_modules_chain_without_a_permutation() -> None:
    """One layout: an image and logits channels first, feature maps channels last."""
    image = torch.rand(2, 3, 13, 10)
    fine, coarse = (nn.OverlapEmbedding(3, 4, stride=stride)(image) for stride in (1, 2))
    fine, _ = nn.EfficientAttention(4)(nn.MixFFN(4)(fine))
    fine, coarse = nn.TwoWayCrossScaleAttention(4, num_heads=2)(fine, coarse)
    logits = nn.ScoreMap(4, 5)(nn.EfficientTransformerBlock(4)(coarse).y, fine)
    assert logits.shape == (2, 5, 13, 10)
    assert nn.ClusteringLoss()(logits).labels.shape == (2, 13, 10)
    patches = nn.PatchEmbedding(5, 4, patch=4)(logits)
    assert nn.StabilityLoss()(*patches).shape == ()


def test_names_of_modules_are_those_of_ops() -> None:
    """In capitals, for every op that has a module."""
    modules = {name.lower() for name in nn.__all__}
    without = {"batch_statistics", "guided_score_map", "linear_clustering_loss", "mix_ffn_with_statistics"}
    without |= {"stability_attention", "use_ieee_products", "weighted_losses"}
    functions = {name for name in ops.__all__ if name == name.lower()}
    assert {name for name in functions if name.replace("_", "") not in modules} == without
