"""When a dimension is active on a row: one definition for every metric and picture."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5  # the papers' threshold


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one, whatever their scale; a row of zeros stays.

    The largest entry becomes one first: squares of 1e-30 and of 1e30 do not exist in float32.
    """
    largest = x.abs().amax(dim=1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1.0)
    unit: Tensor = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1.0)
    return unit


def active(x: Tensor, eps: float) -> Tensor:
    r"""Where :math:`|q_{ij}| > \varepsilon` in rows of length one."""
    return unit_rows(x).abs() > eps
