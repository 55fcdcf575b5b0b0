"""The MS-Former network, in the order in which data flows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from msformer_fast import ops
from msformer_fast.errors import InputError
from msformer_fast.nn.batch_norm import Folded, can_fold, update_running
from msformer_fast.nn.block import EfficientTransformerBlock
from msformer_fast.nn.cross_scale_attention import TwoWayCrossScaleAttention
from msformer_fast.nn.hooks import Fused
from msformer_fast.nn.overlap_embedding import OverlapEmbedding, project_two
from msformer_fast.nn.patch_embedding import embed_patches, normed_windows
from msformer_fast.nn.score_map import compose_scores
from msformer_fast.ops import Clustering, Patches
from msformer_fast.ops.backend import native_by_default, why_not_native
from msformer_fast.ops.memory import check_memory

#: How the two branches see each other before the head: not at all, or window by window.
CROSS_SCALE = ("none", "window")


class Scores(NamedTuple):
    """What the network says of a batch of images.

    Attributes:
        logits: (B, K, H, W), the score map (channels-last in memory).
        context_fine, context_coarse: (B, C, C), the contexts of the last block of each branch.
        queries, keys: (B, T, C), the patch embeddings of the stability loss; ``None`` where not asked for.
        clustering: the clustering loss (scalar, unweighted), its labels (B, H, W) and label count (B), where the pass
            that made the logits gave them too; else ``None``.
    """

    logits: Tensor
    context_fine: Tensor
    context_coarse: Tensor
    queries: Tensor | None
    keys: Tensor | None
    clustering: Clustering | None = None


class MSFormer(Fused):
    """Dual-branch, two-scale, self-guided transformer (Karimijafarbigloo et al., MIDL 2023).

    Args:
        in_channels: channels of the image.
        channels: C, embedding width (paper: 100).
        clusters: K, number of clusters (paper: 100).
        depth: blocks in each branch, one number or (fine, coarse) (paper: 2).
        patch: P, side in pixels of the stability loss's patches (paper: 32).
        seed: draws the parameters from this seed and leaves PyTorch's generators as they were; ``None`` draws
            from PyTorch's current state. The draws are PyTorch's defaults, made in the order of the authors' code.
            Drawn from a seed they are moved afterwards: it is one network for every ``device`` and ``dtype``.
        memory: ``"fast"`` keeps hidden activations between forward and backward, ``"lean"`` recomputes them there, a
            strip of rows at a time. The reference always keeps all.
        cross_scale: ``"none"`` is the paper's network. ``"window"``, an extension, lets the two maps ask each other
            after every block that both branches have, in windows of 8 fine and 4 coarse pixels, every other time
            shifted by half a window; see :class:`msformer_fast.nn.TwoWayCrossScaleAttention`. It starts as the
            paper's network: these parameters are drawn last, and what they add is zero at first. Heads: 4, or 2 or 1
            where 4 do not divide C. ``memory`` does not concern it.
        backend: of every op; see :mod:`msformer_fast.ops`.
        device, dtype: of the parameters, see :class:`torch.nn.Linear`.

    Shape: an image, channels first, (B, in_channels, H, W) -> :class:`Scores`, whose logits are channels first too.

    In training the kernels apply every batch norm where the next op reads, and take the clustering loss from the pass
    that makes the logits, unless a module has hooks: then each is called by itself, so that they run, as described in
    :class:`msformer_fast.nn.Fused`. Each means every submodule but the lists (``block_s`` and the like), which PyTorch
    never calls. With ``cross_scale="window"``, which reads the maps behind the norms, these are called too.

    State dict: the authors' names and shapes, both ways; ``cross_scale="window"`` adds ``cross.*``.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 100,
        clusters: int = 100,
        depth: int | tuple[int, int] = 2,
        patch: int = 32,
        *,
        seed: int | None = None,
        memory: str = "fast",
        cross_scale: str = "none",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        fine_depth, coarse_depth = (depth, depth) if isinstance(depth, int) else depth
        sizes = {"in_channels": in_channels, "channels": channels, "patch": patch}
        sizes |= {"depth (fine)": fine_depth, "depth (coarse)": coarse_depth}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"MSFormer: {name} must be at least 1, got {value}")
        if clusters < 2:
            raise InputError(f"MSFormer: clusters must be at least 2, got {clusters}")
        self.in_channels = in_channels
        self.channels = channels
        self.clusters = clusters
        self.patch = patch
        check_memory("MSFormer", memory)
        self.memory = memory
        if cross_scale not in CROSS_SCALE:
            raise InputError(f"MSFormer: cross_scale must be one of {', '.join(CROSS_SCALE)}; got {cross_scale!r}")
        self.cross_scale = cross_scale
        self.backend = backend

        factory: dict[str, Any] = {"device": device, "dtype": dtype} if seed is None else {}
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            # The suffixes are the authors': s is the branch of small patches (fine), l of large ones (coarse).
            self.patch_embed_s = OverlapEmbedding(in_channels, channels, stride=1, **factory)
            self.patch_embed_l = OverlapEmbedding(in_channels, channels, stride=2, **factory)
            self.block_s = self._blocks(fine_depth, factory)
            self.block_l = self._blocks(coarse_depth, factory)
            self.bn2_s = nn.ModuleList(nn.BatchNorm2d(channels, **factory) for _ in range(fine_depth))
            self.bn2_l = nn.ModuleList(nn.BatchNorm2d(channels, **factory) for _ in range(coarse_depth))
            self.linear_up = nn.Linear(channels, 4 * channels, bias=False, **factory)
            self.linear_down = nn.Linear(2 * channels, clusters, bias=False, **factory)
            self.to_patch_embedding = nn.Sequential(
                Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch),
                nn.Linear(patch * patch * clusters, channels, **factory),
            )
            self.bn3 = nn.BatchNorm2d(clusters, **factory)
            # Last, so that a seed draws the paper's parameters with it and without it.
            exchanges = min(fine_depth, coarse_depth) if cross_scale == "window" else 0
            self.cross = nn.ModuleList(self._exchange(index, factory) for index in range(exchanges))
        if seed is not None and (device is not None or dtype is not None):
            self.to(device=device, dtype=dtype)

    def _exchange(self, index: int, factory: dict[str, Any]) -> TwoWayCrossScaleAttention:
        """What stands behind block ``index``: windows of 8 fine pixels, every other time shifted by half of them."""
        heads, shift = math.gcd(self.channels, 4), 4 * (index % 2)
        return TwoWayCrossScaleAttention(
            self.channels, window=8, num_heads=heads, shift=shift, backend=self.backend, **factory
        )

    def _blocks(self, depth: int, factory: dict[str, Any]) -> nn.ModuleList:
        options = factory | {"memory": self.memory, "backend": self.backend}
        return nn.ModuleList(EfficientTransformerBlock(self.channels, **options) for _ in range(depth))

    def forward(self, image: Tensor, *, stability: bool = True) -> Scores:
        """Score every pixel.

        Args:
            image: (B, in_channels, H, W), floating point in [0, 1], H and W at least ``patch + 1``.
            stability: also embed the patches of the stability loss.

        Raises:
            InputError: a wrong number of channels, or an image that is too small.
        """
        self._check(image)
        if self._folds(image):
            return self._forward_folded(image, stability)
        fine = self.patch_embed_s(image)
        coarse = self.patch_embed_l(image)
        for index in range(max(len(self.block_s), len(self.block_l))):
            if index < len(self.block_s):
                fine, context_fine = self.block_s[index](fine)
                fine = _norm_tokens(fine, self.bn2_s[index])
            if index < len(self.block_l):
                coarse, context_coarse = self.block_l[index](coarse)
                coarse = _norm_tokens(coarse, self.bn2_l[index])
            if index < len(self.cross):
                fine, coarse = self.cross[index](fine, coarse)
        logits = self._score(coarse, fine)
        queries, keys = self.embed_patches(logits) if stability else (None, None)
        return Scores(logits, context_fine, context_coarse, queries, keys)

    def _folds(self, image: Tensor) -> bool:
        """Whether kernels will run, every batch norm can be applied by what reads it, and nobody looks on."""
        kernels = self.backend in ("triton", "native") or (self.backend is None and self._takes_kernels(image))
        if self.cross or not kernels:
            return False
        norms = (self.patch_embed_s.norm, self.patch_embed_l.norm, *self.bn2_s, *self.bn2_l, self.bn3)
        return can_fold(norms) and self._may_bypass()

    def _takes_kernels(self, image: Tensor) -> bool:
        if image.device.type == "cpu":
            return native_by_default() and why_not_native("MSFormer", image, self.linear_up.weight) is None
        return image.device.type == "cuda"

    def _forward_folded(self, image: Tensor, stability: bool) -> Scores:
        """The same with no pass for any batch norm; the clustering loss is from the pass that makes the logits."""
        embeds = self.patch_embed_s, self.patch_embed_l
        projected = project_two(image, *embeds, self.backend)
        first_fine, first_coarse = (
            Folded(embed.norm, found.mean, found.var, found.y[..., 0].numel())
            for embed, found in zip(embeds, projected, strict=True)
        )
        fine, coarse = (found.y for found in projected)
        fine, context_fine, fine_norms = self._branch(fine, first_fine, self.block_s, self.bn2_s)
        coarse, context_coarse, coarse_norms = self._branch(coarse, first_coarse, self.block_l, self.bn2_l)
        norms = [*fine_norms, *coarse_norms]
        maps = coarse, fine, self.linear_up.weight, self.linear_down.weight
        coarse_norm, fine_norm = coarse_norms[-1].for_op(), fine_norms[-1].for_op()
        if not stability:
            update_running(norms)
            logits = ops.score_map(*maps, coarse_norm=coarse_norm, fine_norm=fine_norm, backend=self.backend)
            return Scores(logits.permute(0, 3, 1, 2), context_fine, context_coarse, None, None)
        linear, norm = self.to_patch_embedding[1], self.bn3
        assert isinstance(linear, nn.Linear)
        made = ops.guided_score_map(
            *maps,
            linear.weight,
            linear.bias,
            norm.weight,
            norm.bias,
            coarse_norm=coarse_norm,
            fine_norm=fine_norm,
            patch=self.patch,
            eps=norm.eps,
            backend=self.backend,
        )
        update_running([*norms, Folded(norm, made.mean, made.var, made.labels.numel())])
        clustering = Clustering(made.loss, made.labels, made.label_count)
        return Scores(made.logits, context_fine, context_coarse, made.queries, made.keys, clustering)

    def _branch(
        self, x: Tensor, first: Folded, blocks: nn.ModuleList, norms: nn.ModuleList
    ) -> tuple[Tensor, Tensor, list[Folded]]:
        """Tokens before the last batch norm, the last context, and every batch norm in order, of a branch's tokens
        and their own batch norm."""
        folded = [first]
        for block, norm in zip(blocks, norms, strict=True):
            assert isinstance(block, EfficientTransformerBlock) and isinstance(norm, nn.BatchNorm2d)
            x, context, mean, var = block.between_norms(x, folded[-1].for_op())
            folded.append(Folded(norm, mean, var, x[..., 0].numel()))
        return x, context, folded

    def _score(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Logits (B, K, H, W) of both branches."""
        up, down = self.linear_up, self.linear_down
        if self._may_bypass("linear_up", "linear_down"):
            logits = ops.score_map(coarse, fine, up.weight, down.weight, backend=self.backend)
        else:
            logits = compose_scores(coarse, fine, up, down)
        return logits.permute(0, 3, 1, 2)

    def embed_patches(self, logits: Tensor) -> Patches:
        """Queries and keys of the stability loss, (B, T, C) each, from the logits (B, K, H, W)."""
        if not self._may_bypass("bn3", "to_patch_embedding"):
            windows = normed_windows(logits, self.bn3, self.patch)
            return Patches(*(self.to_patch_embedding(each) for each in windows))
        linear = self.to_patch_embedding[1]
        assert isinstance(linear, nn.Linear)
        return embed_patches(logits, self.bn3, linear, self.patch, self.backend)

    def _check(self, image: Tensor) -> None:
        if not image.is_floating_point() or image.ndim != 4 or image.shape[1] != self.in_channels:
            raise InputError(
                f"MSFormer: image must be floating point, (B, {self.in_channels}, H, W); "
                f"got {image.dtype}, {tuple(image.shape)}"
            )
        if min(image.shape[2:]) < self.patch + 1:
            raise InputError(
                f"MSFormer: image must be at least patch + 1 = {self.patch + 1} pixels high and wide; "
                f"got {image.shape[2]} x {image.shape[3]}"
            )

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, clusters={self.clusters}, patch={self.patch}, memory={self.memory!r}, "
            f"cross_scale={self.cross_scale!r}, backend={self.backend!r}"
        )


def _norm_tokens(tokens: Tensor, norm: nn.Module) -> Tensor:
    """A BatchNorm2d on (B, H, W, C), without a copy where the memory is channels-last already."""
    normed: Tensor = norm(tokens.permute(0, 3, 1, 2))
    return normed.permute(0, 2, 3, 1)
