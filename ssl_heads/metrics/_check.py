"""Checks of what a metric is given. Metrics return Python numbers, so they may look into a tensor."""

from __future__ import annotations

from torch import Tensor

from ssl_heads._check import integers, positive, same_width

__all__ = ["features", "labelled", "positive", "same_width"]


def features(name: str, x: Tensor) -> None:
    """A floating-point matrix (n, d), neither side empty."""
    if x.ndim != 2 or not x.is_floating_point() or x.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty floating-point tensor of shape (n, d), got {x.dtype} of shape {tuple(x.shape)}"
        )


def labelled(name: str, x: Tensor, labels_name: str, labels: Tensor) -> None:
    """Features with one class, an integer from 0, for each row."""
    features(name, x)
    integers(labels_name, labels, len(x), name, x)
    smallest = int(labels.min())
    if smallest < 0:
        raise ValueError(f"{labels_name} must be classes 0, 1, ...; got {smallest}. Drop the rows without a label")
