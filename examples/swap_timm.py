"""Put this package's modules into timm's Swin Transformer, and train three steps.

pip install timm && python examples/swap_timm.py
"""

from __future__ import annotations

import timm
import torch

import msformer_fast as mf


def main() -> list[float]:
    """The losses of the three steps."""
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=2,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # made before the swap: parameters stay the same objects
    swaps = mf.accelerate(model)
    print(swaps)  # what was swapped, what was left, and why

    # Drawn lesions, and the same images upside down in colour: two classes.
    images = torch.stack([torch.from_numpy(mf.phantom.lesion((64, 64), seed=seed).image) for seed in range(4)])
    images = torch.cat([images, 1 - images]).permute(0, 3, 1, 2)  # (8, 3, 64, 64), channels first
    classes = torch.tensor([0] * 4 + [1] * 4)

    model.train()
    losses = []
    for step in range(3):
        loss = torch.nn.functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")

    swaps.undo()  # the very blocks of timm again, trained
    return losses


if __name__ == "__main__":
    main()
