"""Structures of published networks, written from their descriptions, for the tests of ``accelerate``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EfficientAttention(nn.Module):
    """Shen et al., WACV 2021, with what the copies differ in: heads, residual, and the context that is returned."""

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        head_count: int = 1,
        residual: bool = False,
        context: str = "none",
        bias: bool = True,
    ) -> None:
        super().__init__()
        key_channels, value_channels = key_channels or channels, value_channels or channels
        self.head_count, self.residual, self.context = head_count, residual, context
        self.keys = nn.Conv2d(channels, key_channels, 1, bias=bias)
        self.queries = nn.Conv2d(channels, key_channels, 1, bias=bias)
        self.values = nn.Conv2d(channels, value_channels, 1, bias=bias)
        self.reprojection = nn.Conv2d(value_channels, channels, 1, bias=bias)

    def scored(self, keys: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        return keys.softmax(dim=3), queries.softmax(dim=2)

    def forward(self, x: Tensor) -> Any:
        batch, _, height, width = x.shape
        split = (batch, self.head_count, -1, height * width)
        keys, queries = self.scored(self.keys(x).reshape(split), self.queries(x).reshape(split))
        contexts = keys @ self.values(x).reshape(split).mT
        attended = contexts.mT @ queries
        y = self.reprojection(attended.reshape(batch, -1, height, width))
        y = y + x if self.residual else y
        returned = {"last": contexts[:, -1], "first": contexts[:, 0], "all": contexts}
        return y if self.context == "none" else (y, returned[self.context])


class DepthwiseConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.dwconv(x.transpose(1, 2).unflatten(2, (H, W))).flatten(2).transpose(1, 2)


class MixFFN(nn.Module):
    """SegFormer's (Xie et al., 2021)."""

    def __init__(self, channels: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.dwconv(self.fc1(x), H, W)))))


class MixFFN_skip(nn.Module):
    """MISSFormer's (Huang et al., 2021), with three norms of which one is used, as its copies have."""

    used = "norm1"

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)
        for index in (1, 2, 3):
            self.add_module(f"norm{index}", nn.LayerNorm(hidden))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        wide = self.fc1(x)
        return self.fc2(self.act(self.get_submodule(self.used)(self.dwconv(wide, H, W) + wide)))


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


FEED_FORWARD = {"mix": MixFFN, "mix_skip": MixFFN_skip, "mlp": MLP}


class EfficientTransformerBlock(nn.Module):
    """MS-Former's, which returns the context, and DAE-Former's, which does not."""

    def __init__(self, channels: int, heads: int = 1, mlp: str = "mix_skip", context: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = EfficientAttention(channels, head_count=heads, context="last")
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FEED_FORWARD[mlp](channels, 4 * channels)
        self.context = context

    def forward(self, x: Tensor, H: int, W: int) -> Any:
        attended, context = self.attn(self.norm1(x).mT.unflatten(2, (H, W)))
        t = x + attended.flatten(2).mT
        y = t + self.mlp(self.norm2(t), H, W)
        return (y, context) if self.context else y


class AuthorsBlock(nn.Module):
    """MS-Former's own: a map and its height and width in, a map and the context out."""

    def __init__(self, in_dim: int, key_dim: int, value_dim: int, head_count: int = 1, token_mlp: str = "mix") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = EfficientAttention(in_dim, key_dim, value_dim, 1, context="last")
        self.norm2 = nn.LayerNorm(in_dim)
        self.mlp = FEED_FORWARD[token_mlp](in_dim, 4 * in_dim)

    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(2).mT
        attended, context = self.attn(self.norm1(tokens).mT.unflatten(2, (H, W)))
        t = tokens + attended.flatten(2).mT
        return (t + self.mlp(self.norm2(t), H, W)).mT.unflatten(2, (H, W)), context


class AuthorsNetwork(nn.Module):
    """MS-Former's two branches as its authors wrote them: embedding, blocks, batch norms, and the head."""

    def __init__(self, channels: int = 12, clusters: int = 8) -> None:
        super().__init__()
        for branch, stride in (("s", 1), ("l", 2)):
            embed = nn.Sequential(nn.Conv2d(3, channels, 3, stride, 1), nn.BatchNorm2d(channels))
            self.add_module(f"patch_embed_{branch}", embed)
            blocks = (AuthorsBlock(channels, channels, channels, token_mlp="mix_skip") for _ in range(2))
            self.add_module(f"block_{branch}", nn.ModuleList(blocks))
            self.add_module(f"bn2_{branch}", nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2)))
        self.linear_up = nn.Linear(channels, 4 * channels, bias=False)
        self.linear_down = nn.Linear(2 * channels, clusters, bias=False)

    def branch(self, image: Tensor, name: str) -> tuple[Tensor, Tensor]:
        x = self.get_submodule(f"patch_embed_{name}")(image)
        for block, norm in zip(self.get_submodule(f"block_{name}"), self.get_submodule(f"bn2_{name}"), strict=True):
            y, context = block(x, *x.shape[2:])
            x = norm(y)
        return x, context

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, context_s = self.branch(image, "s")
        coarse, context_l = self.branch(image, "l")
        up = self.linear_up(coarse.permute(0, 2, 3, 1)).unflatten(-1, (2, 2, -1))
        up = up.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)[:, : fine.shape[2], : fine.shape[3]]
        return self.linear_down(torch.cat([up, fine.permute(0, 2, 3, 1)], -1)), context_s, context_l


class ChannelAttention(nn.Module):
    """Attention of channels to channels, with a temperature (DAE-Former, after XCiT)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)
        return self.proj((weights @ v).permute(0, 3, 1, 2).flatten(2))


class DualTransformerBlock(nn.Module):
    """Efficient attention, then channel attention, each with a Mix-FFN behind it."""

    def __init__(self, channels: int, heads: int, mlp: str) -> None:
        super().__init__()
        for index in (1, 2, 3, 4):
            self.add_module(f"norm{index}", nn.LayerNorm(channels))
        self.attn = EfficientAttention(channels, head_count=heads)
        self.channel_attn = ChannelAttention(channels, heads)
        self.mlp1 = FEED_FORWARD[mlp](channels, 4 * channels)
        self.mlp2 = FEED_FORWARD[mlp](channels, 4 * channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x).mT.unflatten(2, (H, W))).view(*x.mT.shape).mT
        x = x + self.mlp1(self.norm2(x), H, W)
        x = x + self.channel_attn(self.norm3(x))
        return x + self.mlp2(self.norm4(x), H, W)


class CrossAttention(nn.Module):
    """Efficient attention whose queries come from another map: the parts are those of self-attention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keys, self.queries = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.values, self.reprojection = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        context = self.keys(source).flatten(2).softmax(2) @ self.values(source).flatten(2).mT
        attended = context.mT @ self.queries(target).flatten(2).softmax(1)
        return self.reprojection(attended.unflatten(2, target.shape[2:]))


class Embed(nn.Module):
    """Overlapping patches, normed, as tokens."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).mT), *x.shape[2:]


class DAEFormer(nn.Module):
    """Azad et al., 2022, at two scales: dual blocks down and up, with cross attention over the skip connection."""

    def __init__(self, widths: tuple[int, int] = (12, 24), mlp: str = "mix_skip", classes: int = 3) -> None:
        super().__init__()
        fine, coarse = widths
        self.embed1, self.embed2 = Embed(3, fine, 7, 4), Embed(fine, coarse, 3, 2)
        self.block1 = nn.ModuleList(DualTransformerBlock(fine, 2, mlp) for _ in range(2))
        self.block2 = nn.ModuleList(DualTransformerBlock(coarse, 4, mlp) for _ in range(2))
        self.expand = nn.Linear(coarse, fine)
        self.cross_attn = CrossAttention(fine)
        self.up = nn.ModuleList([EfficientTransformerBlock(fine, 2, mlp, context=False)])
        self.head = nn.Conv2d(fine, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x, H, W = self.embed1(image)
        for block in self.block1:
            x = block(x, H, W)
        skip = x.mT.unflatten(2, (H, W))
        y, h, w = self.embed2(skip)
        for block in self.block2:
            y = block(y, h, w)
        y = F.interpolate(self.expand(y).mT.unflatten(2, (h, w)), (H, W), mode="bilinear")
        x = (y + self.cross_attn(skip, y)).flatten(2).mT
        for block in self.up:
            x = block(x, H=H, W=W)
        return self.head(x.mT.unflatten(2, (H, W)))


class ReducedAttention(nn.Module):
    """Self-attention to keys and values of a map reduced by a strided convolution (SegFormer, MISSFormer)."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr = nn.Conv2d(channels, channels, ratio, ratio)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        small = self.norm(self.sr(x.mT.unflatten(2, (H, W))).flatten(2).mT)
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(small).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class ReducedBlock(nn.Module):
    def __init__(self, channels: int, heads: int, ratio: int, mlp: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = ReducedAttention(channels, heads, ratio)
        self.mlp = FEED_FORWARD[mlp](channels, 4 * channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x), H, W)


class SegFormer(nn.Module):
    """Xie et al., NeurIPS 2021, at two scales; with ``mlp="mix_skip"`` the encoder of MISSFormer."""

    def __init__(self, widths: tuple[int, int] = (8, 16), mlp: str = "mix", classes: int = 4) -> None:
        super().__init__()
        self.embed1, self.embed2 = Embed(3, widths[0], 7, 4), Embed(widths[0], widths[1], 3, 2)
        self.block1 = nn.ModuleList(ReducedBlock(widths[0], 1, 2, mlp) for _ in range(2))
        self.block2 = nn.ModuleList(ReducedBlock(widths[1], 2, 1, mlp) for _ in range(2))
        self.linear1, self.linear2 = nn.Linear(widths[0], 12), nn.Linear(widths[1], 12)
        self.fuse = nn.Conv2d(24, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps, x = [], image
        for index, linear in ((1, self.linear1), (2, self.linear2)):
            x, H, W = self.get_submodule(f"embed{index}")(x)
            for block in self.get_submodule(f"block{index}"):
                x = block(x, H, W)
            maps.append(linear(x).mT.unflatten(2, (H, W)))
            x = x.mT.reshape(len(image), -1, H, W)
        return self.fuse(torch.cat([maps[0], F.interpolate(maps[1], maps[0].shape[2:], mode="bilinear")], 1))


class WindowAttention(nn.Module):
    """Of Microsoft's Swin: windows (windows, tokens, C), a table of relative positions, and a mask of shifted ones."""

    def __init__(self, channels: int, window: int, heads: int, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.scale = heads, (window, window), (channels // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(0.2 * torch.randn((2 * window - 1) ** 2, heads))
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = place[:, None] - place + window - 1
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv, self.attn_drop = nn.Linear(channels, 3 * channels), nn.Dropout(drop)
        self.proj, self.proj_drop = nn.Linear(channels, channels), nn.Dropout(0.0)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = q * self.scale @ k.mT + bias
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        attended = self.attn_drop(self.softmax(scores)) @ v
        return self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))


class SwinTransformerBlock(nn.Module):
    """Microsoft's (Liu et al., 2021), as Swin-Unet, HiFormer and TransDeepLab have it: tokens of one size of map."""

    def __init__(self, dim: int, input_resolution: tuple[int, int], num_heads: int, window_size: int, shift_size: int):
        super().__init__()
        self.input_resolution, self.window_size, self.shift_size = input_resolution, window_size, shift_size
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads)
        self.drop_path = nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        mask = None
        if shift_size:
            zones = [torch.zeros(size) for size in input_resolution]
            for zone in zones:
                zone[-window_size:], zone[-shift_size:] = 1, 2
            of_windows = _windows((3 * zones[0][:, None] + zones[1])[None, ..., None], window_size).squeeze(2)
            mask = -100.0 * (of_windows[:, :, None] != of_windows[:, None]).float()
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.input_resolution
        shift = self.shift_size
        y = torch.roll(self.norm1(x).unflatten(1, (height, width)), (-shift, -shift), (1, 2))
        y = self.attn(_windows(y, self.window_size), mask=self.attn_mask)
        y = torch.roll(_map_of(y, self.window_size, height, width), (shift, shift), (1, 2))
        x = x + self.drop_path(y.flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C) -> (windows, side * side, C)."""
    return x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def _map_of(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """Back: (windows, side * side, C) -> (B, H, W, C)."""
    x = windows.unflatten(1, (side, side)).unflatten(0, (-1, height // side, width // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class SwinUnetStage(nn.Module):
    """Pairs of blocks, the second of each shifted, on patches of an image."""

    def __init__(self, channels: int = 12, side: int = 16, window: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, 4, 4)
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(channels, (side, side), 3, window, shift) for shift in (0, window // 2) * 2
        )
        self.head = nn.Linear(channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x)
