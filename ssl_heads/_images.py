"""Images in every common form: bytes or floats, channels first or last, grey, or of Pillow."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ssl_heads.metrics._inputs import as_tensor

# share of the range by which values may leave it: interpolation stays within, normalisation does not
OVERSHOOT = 0.2
# least maximum of floats in [0, 255]: normalised values and counts up to 16 stay below
DARK = 32


def as_images(images: Any) -> tuple[Tensor, float]:
    """Images (n, 1 or 3, h, w), and the value of white in them: 1 or 255."""
    if isinstance(images, list | tuple) and len(images) > 0 and all(hasattr(image, "convert") for image in images):
        images = _from_pillow(images)
    x = as_tensor("images", images)
    shape = tuple(x.shape)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        x = rearrange(x, "n h w c -> n c h w")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.numel() == 0:
        raise ValueError(f"expected images (n, 1 or 3, h, w), (n, h, w, 1 or 3) or (n, h, w), got shape {shape}")
    return x, _white(x)


def _white(x: Tensor) -> float:
    if x.dtype == torch.uint8:
        return 255.0
    low, high = float(x.min()), float(x.max())
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return 1.0
    if low >= -OVERSHOOT * 255 and high <= (1 + OVERSHOOT) * 255 and (high >= DARK or not x.is_floating_point()):
        return 255.0
    raise ValueError(
        f"images must fill [0, 1] or [0, 255], got {x.dtype} from {low:.4g} to {high:.4g}; undo a normalisation first: "
        "images * std + mean"
    )


def _from_pillow(images: Any) -> Tensor:
    sizes = {tuple(image.size) for image in images}
    if len(sizes) > 1:
        raise ValueError(f"images must be of one size, got {sorted(sizes)[:4]}: resize them first")
    ((width, height),) = sizes
    pixels = b"".join(image.convert("RGB").tobytes() for image in images)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(len(images), height, width, 3)
