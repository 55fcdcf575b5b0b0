"""The drop-in for the Swin layers of HuggingFace's transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msformer_fast.errors import InputError
from msformer_fast.nn.drop_in import drops
from msformer_fast.nn.hooks import all_are_hooked, is_looked_at
from msformer_fast.nn.swin_attention import WindowDropIn, attend_windows
from msformer_fast.nn.swin_structure import SEAM, standard_index

_PARTS = ("layernorm_before", "attention", "drop_path", "layernorm_after")
_SINCE_5 = {"q_proj", "k_proj", "v_proj", "o_proj", "relative_position_bias"}
_BEFORE = {"query", "key", "value", "dropout"}


class HuggingFaceSwinLayer(WindowDropIn):
    """A stand-in for ``SwinLayer`` of transformers, before version 5 and since, and its copies in other models there.

    Norms, projections, MLP and drop path are called as they were. The map is padded, then rolled; the window and the
    shift are the layer's, which it changes on a map no larger than a window, all as in transformers. A layer whose
    gradients are checkpointed goes on so.

    The layer's own code runs where somebody asks for the attention's probabilities or the layer computes them by
    itself (``attn_implementation="eager"`` since version 5), hooks into the attention or changed something on the
    layer, where a dropout is at work, and on the CPU, where that is faster.

    Shape: tokens (B, H * W, C) and (H, W), with the layer's further arguments -> (tokens (B, H * W, C),), since version
    5 (tokens, None); any floating dtype.

    Raises:
        InputError: a layer of another class or make, or with an index of its own (Swin V2 has a logit scale).
        BackendError: from a call, the backend asked for cannot run it.

    Source: Liu et al., "Swin Transformer", ICCV 2021; transformers.models.swin.
    """

    #: The layer's own rule sets the first two; the others say whether gradients are checkpointed.
    follows = frozenset(("window_size", "shift_size", "gradient_checkpointing", "_gradient_checkpointing_func"))

    def __init__(self, layer: nn.Module, *, backend: str | None = None) -> None:
        reason = self.why_not(layer)
        if reason is not None:
            raise InputError(f"HuggingFaceSwinLayer: layer must be a SwinLayer of transformers: {reason}")
        super().__init__(layer, backend=backend)

    @classmethod
    def why_not(cls, layer: Any) -> str | None:
        """Why this is not such a layer, as the end of a sentence, or ``None``."""
        lacking = [name for name in _PARTS if layer._modules.get(name) is None]
        lacking += [name for name in ("window_size", "shift_size") if not isinstance(getattr(layer, name, None), int)]
        if not {"mlp", "dropout"} <= layer._modules.keys() and not {"intermediate", "output"} <= layer._modules.keys():
            lacking.append("mlp")
        if lacking:
            return f"it has no {', '.join(lacking)}"

        attention = layer.attention
        inner = _inner(attention)
        parts, wanted = set(inner._modules), _SINCE_5 if inner is attention else _BEFORE
        where = inner.relative_position_bias if "relative_position_bias" in parts else inner
        own = {*where._parameters, *inner._parameters}
        if parts != wanted or own != {"relative_position_bias_table"}:
            return f"its attention is made of {', '.join(sorted(parts | own))}"
        if inner is not attention and set(attention._modules) != {"self", "output"}:
            return f"its attention is made of {', '.join(sorted(attention._modules))}"
        if inner is attention and not _gives_no_probabilities(attention):
            return 'its attention returns its probabilities; build the model with attn_implementation="sdpa"'

        index, window = where.relative_position_index, layer.window_size
        if not index.is_meta and not torch.equal(index.cpu().flatten(), standard_index((window, window)).flatten()):
            return "it has another relative_position_index than Swin's"
        return None

    def forward(self, hidden_states: Tensor, input_dimensions: Any, *inputs: Any, **named: Any) -> Any:
        self.note_call()
        x, size = hidden_states, input_dimensions
        options = dict(zip([*self._inputs][2:], inputs, strict=False)) | named
        always_partition = options.pop("always_partition", False)
        usual = all(value is None or value is False for value in options.values())
        if not (usual and self.may_gain(x) and self.is_unchanged() and self._attends_as_proved()):
            return self.own_code(x, size, *inputs, **named)

        if not always_partition and hasattr(self.library, "set_shift_and_window_size"):
            self.library.set_shift_and_window_size(self, size)
        if self._table().shape[0] != (2 * self.window_size - 1) ** 2:  # of another window, which its own code refuses
            return self.own_code(x, size, *inputs, **named)

        # Set on the layer by its model; the layer's own code sees to it by itself.
        if self.training and torch.is_grad_enabled() and self.__dict__.get("gradient_checkpointing"):
            return self._gradient_checkpointing_func(self._layer, x, size)
        return self._layer(x, size)

    def _table(self) -> Tensor:
        """Of the bias by relative position, ((2 window - 1)^2, heads)."""
        inner = _inner(self.attention)
        table: Tensor = getattr(inner, "relative_position_bias", inner).relative_position_bias_table
        return table

    def _layer(self, x: Tensor, size: Any) -> Any:
        inner = _inner(self.attention)
        since_5 = inner is self.attention
        side, moved, table = int(self.window_size), int(self.shift_size), self._table()
        projections = (inner.q_proj, inner.k_proj, inner.v_proj) if since_5 else (inner.query, inner.key, inner.value)
        heads = table.shape[1]
        attended = attend_windows(
            projections,
            self.layernorm_before(x).unflatten(1, tuple(size)),
            (side, side),
            (moved, moved),
            heads=heads,
            scale=(x.shape[2] // heads) ** -0.5,
            bias=table,
            order="pad_roll",
            seam=SEAM,
            backend=self.backend,
        ).flatten(1, 2)
        attended = inner.o_proj(attended) if since_5 else self.attention.output(attended, attended)
        x = x + self.drop_path(attended)  # [B, H * W, C]

        normed = self.layernorm_after(x)
        if since_5:
            return x + self.dropout(self.mlp(normed)), None
        return (x + self.output(self.intermediate(normed)),)

    def _attends_as_proved(self) -> bool:
        """Whether nobody hooks into the attention, where he would see windows, wants its probabilities, or drops some
        of them, or elements of windows."""
        attention: Any = self.attention
        if all_are_hooked() or any(is_looked_at(part) or drops(part) for part in attention.modules()):
            return False
        if _inner(attention) is not attention:
            return True
        dropped = self.training and attention.attention_dropout > 0
        return _gives_no_probabilities(attention) and not dropped and not drops(self.dropout)


def _inner(attention: Any) -> Any:
    """What holds the projections: the attention itself, before version 5 its part."""
    return attention._modules.get("self", attention)


def _gives_no_probabilities(attention: Any) -> bool:
    """Since version 5 the model's settings say how attention is computed, and what it returns."""
    return getattr(getattr(attention, "config", None), "_attn_implementation", None) == "sdpa"
