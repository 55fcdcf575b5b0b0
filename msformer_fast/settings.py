"""What the settings of a segmentation may be, and the device that one of them names."""

from __future__ import annotations

import math

import torch

from msformer_fast.capture import check_capture
from msformer_fast.errors import InputError
from msformer_fast.float32_products import check_precision
from msformer_fast.foreground import RULES
from msformer_fast.losses import LossWeights
from msformer_fast.prompts.prompt import Prompt
from msformer_fast.prompts.rule import PROMPT_RULE


def check_values(
    rule: str,
    seeds: int,
    max_iterations: int,
    min_labels: int,
    patience: int | None,
    learning_rate: float,
    momentum: float,
    weights: LossWeights,
    dtype: torch.dtype,
    capture: str,
    precision: str | None,
) -> None:
    """Raises InputError unless :func:`msformer_fast.segment` takes these values, whatever the image."""
    if not isinstance(rule, str) or rule not in (*RULES, PROMPT_RULE):
        raise InputError(f"rule must be one of {', '.join((*RULES, PROMPT_RULE))}; got {rule!r}")
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    if patience is not None and patience < 1:
        raise InputError(f"patience must be at least 1 or None, got {patience}")
    if max_iterations < 1:
        raise InputError(f"max_iterations must be at least 1, got {max_iterations}")
    if min_labels < 1:
        raise InputError(f"min_labels must be at least 1, got {min_labels}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a positive finite number, got {learning_rate}")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be in [0, 1), got {momentum}")
    weights.check()
    check_capture(capture)
    check_precision(precision)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def check_prompt(rule: str, prompt: Prompt | None) -> None:
    """Raises InputError where points or boxes are given with another rule than theirs, or their rule without them."""
    if prompt is not None and rule not in ("auto", PROMPT_RULE):
        raise InputError(
            f"rule: got {rule!r} with points or boxes, which have a rule of their own; accepted are 'auto' and "
            f"'{PROMPT_RULE}', or give no points and boxes"
        )
    if prompt is None and rule == PROMPT_RULE:
        raise InputError(f"rule: '{PROMPT_RULE}' needs points or boxes; give one, or another rule")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device to run on, ``None`` for CUDA where there is one; tried with one small allocation, so that a missing
    one is told before any work.

    Raises:
        InputError: it cannot be used.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); this machine always has 'cpu'") from error
    return chosen
