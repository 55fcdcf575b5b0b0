"""Put this package's modules into MONAI's Swin UNETR in two dimensions, and train three steps.

pip install monai && python examples/swap_monai.py
"""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from monai.networks.nets import SwinUNETR

import msformer_fast as mf


def main() -> list[float]:
    """The losses of the three steps."""
    torch.manual_seed(0)
    model = SwinUNETR(in_channels=3, out_channels=1, spatial_dims=2, feature_size=12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    swaps = mf.accelerate(model)
    print(swaps)

    drawn = [mf.phantom.lesion((64, 64), seed=seed) for seed in range(2)]
    images = torch.stack([torch.from_numpy(each.image) for each in drawn]).permute(0, 3, 1, 2)  # (2, 3, 64, 64)
    masks = torch.stack([torch.from_numpy(each.mask) for each in drawn])[:, None].float()  # (2, 1, 64, 64)

    model.train()
    measure = DiceLoss(sigmoid=True)
    losses = []
    for step in range(3):
        loss = measure(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.4f}")

    swaps.undo()
    return losses


if __name__ == "__main__":
    main()
