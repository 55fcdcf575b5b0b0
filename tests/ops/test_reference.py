"""The reference bodies against the definitions, written once more in NumPy with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from msformer_fast import InputError, ops


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


@pytest.mark.parametrize(("heads", "norm", "residual"), [(1, True, True), (2, True, False), (3, False, True)])
def test_efficient_attention(heads: int, norm: bool, residual: bool) -> None:
    batch, height, width, c, ck, cv = 2, 5, 4, 7, 6, 12
    x = rand(batch, height, width, c)
    wk, bk, wq, bq = rand(ck, c), rand(ck), rand(ck, c), rand(ck)
    wv, bv, wr, br = rand(cv, c), rand(cv), rand(c, cv), rand(c)
    gamma, beta = (rand(c), rand(c)) if norm else (None, None)
    y, context = ops.efficient_attention(
        x, wk, bk, wq, bq, wv, bv, wr, br, gamma, beta, heads=heads, norm=norm, residual=residual
    )

    a = {name: value.numpy() for name, value in locals().items() if isinstance(value, Tensor)}
    for b in range(batch):
        tokens = a["x"][b].reshape(-1, c)
        n = layer_norm(tokens, a["gamma"], a["beta"]) if norm else tokens
        keys, queries = n @ a["wk"].T + a["bk"], n @ a["wq"].T + a["bq"]
        values = n @ a["wv"].T + a["bv"]
        parts = []
        for h in range(heads):
            k = slice(h * ck // heads, (h + 1) * ck // heads)
            v = slice(h * cv // heads, (h + 1) * cv // heads)
            wanted = softmax(keys[:, k], 0).T @ values[:, v]
            np.testing.assert_allclose(context[b, h], wanted, rtol=1e-10, atol=1e-12)
            parts.append(softmax(queries[:, k], 1) @ wanted)
        out = np.concatenate(parts, 1) @ a["wr"].T + a["br"] + (tokens if residual else 0)
        np.testing.assert_allclose(y[b].reshape(-1, c), out, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_mix_ffn(inner: bool, norm: bool) -> None:
    batch, height, width, c, d = 2, 4, 5, 3, 7
    t, w1, b1, w2, b2 = rand(batch, height, width, c), rand(d, c), rand(d), rand(c, d), rand(c)
    dw, db, g1, e1, g2, e2 = rand(d, 1, 3, 3), rand(d), rand(c), rand(c), rand(d), rand(d)
    y = ops.mix_ffn(
        t, w1, b1, dw, db, w2, b2,
        g1 if norm else None, e1 if norm else None, g2 if inner else None, e2 if inner else None,
        norm=norm, inner_norm=inner, inner_skip=inner, residual=norm,
    )  # fmt: skip

    a = {name: value.numpy() for name, value in locals().items() if isinstance(value, Tensor)}
    z = layer_norm(a["t"], a["g1"], a["e1"]) if norm else a["t"]
    u = z @ a["w1"].T + a["b1"]
    v = np.zeros_like(u) + a["db"]
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        v[:, i, j] += u[:, i + di, j + dj] * a["dw"][:, 0, di + 1, dj + 1]
    if inner:
        v = layer_norm(v + u, a["g2"], a["e2"])
    gelu = v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))
    wanted = gelu @ a["w2"].T + a["b2"] + (a["t"] if norm else 0)
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (6, 3), (1, 1), (7, 7)])
def test_score_map(height: int, width: int) -> None:
    c, clusters = 3, 4
    fine, coarse = rand(2, height, width, c), rand(2, (height + 1) // 2, (width + 1) // 2, c)
    up, head = rand(4 * c, c), rand(clusters, 2 * c)
    logits = ops.score_map(coarse, fine, up, head)
    for y in range(height):
        for x in range(width):
            block = (y % 2) * 2 + x % 2
            upsampled = coarse[:, y // 2, x // 2] @ up[block * c : (block + 1) * c].T
            wanted = torch.cat([upsampled, fine[:, y, x]], 1) @ head.T
            torch.testing.assert_close(logits[:, y, x], wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("cluster_dim", [1, -1])
def test_clustering_loss(reduction: str, cluster_dim: int) -> None:
    logits = 3 * rand(2, 5, 4, 3)
    logits[0, :, 0, 0] = 1.0  # a tie: the first wins
    logits.requires_grad_()
    given = logits if cluster_dim == 1 else logits.permute(0, 2, 3, 1)
    loss, labels, count = ops.clustering_loss(given, cluster_dim=cluster_dim, reduction=reduction)

    pixels = logits.logsumexp(1) - logits.amax(1)
    wanted = {"mean": pixels.mean(), "sum": pixels.sum(), "none": pixels}[reduction]
    torch.testing.assert_close(loss, wanted)
    assert labels.dtype == torch.uint8
    assert labels[0, 0, 0] == 0
    assert torch.equal(labels.long(), logits.argmax(1))
    assert count.dtype == torch.int32
    assert count.tolist() == [labels[b].unique().numel() for b in range(2)]

    loss.sum().backward()
    onehot = torch.nn.functional.one_hot(labels.long(), 5).permute(0, 3, 1, 2)
    gradient = (logits.softmax(1) - onehot) / (24 if reduction == "mean" else 1)
    torch.testing.assert_close(logits.grad, gradient)


@pytest.mark.parametrize(("clusters", "dtype"), [(256, torch.uint8), (257, torch.int16), (40000, torch.int32)])
def test_label_dtype(clusters: int, dtype: torch.dtype) -> None:
    _, labels, _ = ops.clustering_loss(torch.randn(1, clusters, 2, 2))
    assert labels.dtype == dtype


@pytest.mark.parametrize(("patch", "height", "width"), [(3, 8, 11), (2, 3, 4), (4, 5, 9)])
@pytest.mark.parametrize("training", [True, False])
def test_patch_embedding(patch: int, height: int, width: int, training: bool) -> None:
    clusters, c = 3, 5
    logits = rand(2, clusters, height, width)
    weight, bias, gamma, beta = rand(c, patch * patch * clusters), rand(c), rand(clusters), rand(clusters)
    mean, var = rand(clusters), rand(clusters).square()
    kept = mean.clone()
    queries, keys = ops.patch_embedding(logits, weight, bias, gamma, beta, mean, var, patch=patch, training=training)

    own = logits.transpose(0, 1).flatten(1)
    centre, spread = (own.mean(1), own.var(1, correction=0)) if training else (kept, var)
    scale = (gamma / (spread + 1e-5).sqrt())[:, None, None]
    normed = (logits - centre[:, None, None]) * scale + beta[:, None, None]
    if training:
        torch.testing.assert_close(mean, 0.9 * kept + 0.1 * centre)
    index = 0
    for i in range((height - 1) // patch):
        for j in range((width - 1) // patch):
            for start, out in ((1, queries), (0, keys)):
                rows = slice(start + i * patch, start + (i + 1) * patch)
                columns = slice(start + j * patch, start + (j + 1) * patch)
                vector = normed[:, :, rows, columns].permute(0, 2, 3, 1).flatten(1)
                torch.testing.assert_close(out[:, index], vector @ weight.T + bias)
            index += 1
    assert index == queries.shape[1] == keys.shape[1]


@pytest.mark.parametrize("patches", [1, 2, 9])
@pytest.mark.parametrize("scale", [8.0, 3.0])
def test_stability_loss(patches: int, scale: float) -> None:
    queries, keys = 3 * rand(2, patches, 5), 3 * rand(2, patches, 5)
    attention = softmax((queries @ keys.transpose(1, 2)).numpy() / scale, -1)
    wanted = np.abs(attention - np.eye(patches)).mean()
    np.testing.assert_allclose(ops.stability_loss(queries, keys, scale=scale), wanted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ops.stability_attention(queries, keys, scale=scale), attention, rtol=1e-12)


WEIGHTS = [torch.zeros(4, 4), torch.zeros(4)] * 4
FFN = [torch.zeros(8, 4), torch.zeros(8), torch.zeros(8, 1, 3, 3), torch.zeros(8), torch.zeros(4, 8), torch.zeros(4)]
MAP = torch.zeros(1, 3, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.clustering_loss(torch.zeros(2, 3, 4)), r"logits must have shape \(B, K, H, W\)"),
        (lambda: ops.clustering_loss(torch.zeros(1, 1, 2, 2)), "at least 2 clusters, got 1"),
        (lambda: ops.clustering_loss(torch.zeros(1, 2, 2, 2), reduction="max"), "mean, sum, none; got 'max'"),
        (lambda: ops.clustering_loss(torch.zeros(1, 2, 2, 2), cluster_dim=2), "cluster_dim must be 1 or -1"),
        (lambda: ops.clustering_loss(torch.zeros(1, 2, 2, 2, dtype=torch.int32)), "floating-point"),
        (lambda: ops.clustering_loss([[1.0]]), "must be a torch.Tensor, got list"),
        (lambda: ops.clustering_loss(torch.zeros(1, 2, 2, 2), backend="cuda"), "backend must be None or one of"),
        (lambda: ops.linear_clustering_loss(torch.zeros(4), torch.zeros(3, 4)), r"\(B, ..., D\) or \(N, D\)"),
        (lambda: ops.linear_clustering_loss(torch.zeros(5, 4), torch.zeros(1, 4)), "at least 2 clusters, got 1"),
        (lambda: ops.linear_clustering_loss(torch.zeros(5, 4), torch.zeros(3, 5)), "D = 4"),
        (lambda: ops.stability_loss(torch.zeros(1, 3, 4), torch.zeros(1, 2, 4)), r"keys .* T = 3 \(from queries\)"),
        (lambda: ops.stability_loss(torch.zeros(1, 0, 4), torch.zeros(1, 0, 4)), "at least one patch"),
        (lambda: ops.stability_loss(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), scale=0), "scale must be positive"),
        (lambda: ops.patch_embedding(torch.zeros(1, 2, 32, 40), torch.zeros(3, 2048)), r"patch \+ 1 = 33"),
        (lambda: ops.patch_embedding(torch.zeros(1, 2, 33, 40), torch.zeros(3, 2047)), r"\(C, 2048\)"),
        (lambda: ops.patch_embedding(torch.zeros(1, 2, 5, 5), torch.zeros(3, 32), patch=0), "at least 1 pixel"),
        (
            lambda: ops.patch_embedding(torch.zeros(1, 2, 5, 5), torch.zeros(3, 32), patch=4, training=False),
            "needs running_mean",
        ),
        (lambda: ops.efficient_attention(MAP, *WEIGHTS, heads=3), "heads must be at least 1 and divide"),
        (lambda: ops.efficient_attention(MAP[..., :3], *WEIGHTS), r"key_weight .* C = 3 \(from x\)"),
        (lambda: ops.efficient_attention(MAP, *WEIGHTS, torch.zeros(4), norm=False), "need norm=True"),
        (lambda: ops.mix_ffn(MAP, *FFN, inner_norm_weight=torch.zeros(4)), r"inner_norm_weight .* D = 8"),
        (lambda: ops.mix_ffn(MAP, *FFN, inner_norm_bias=torch.zeros(8), inner_norm=False), "need inner_norm=True"),
        (lambda: ops.mix_ffn(MAP.to("meta"), *FFN), "move them to one device"),
        (lambda: ops.score_map(MAP, MAP, torch.zeros(16, 4), torch.zeros(5, 8)), "= 2 x 2 for fine of 3 x 3"),
        (lambda: ops.score_map(MAP[:, :2, :2], MAP, torch.zeros(12, 4), torch.zeros(5, 8)), "up_weight must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
