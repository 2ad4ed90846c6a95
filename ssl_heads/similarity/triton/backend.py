"""The backend "triton": what `ssl_heads.similarity.backend.Backend` asks for, from the host files beside this one."""

from __future__ import annotations

import torch

from ssl_heads.similarity.triton.backward import pair_backward, self_backward, softplus
from ssl_heads.similarity.triton.forward import pair_forward, self_forward

__all__ = ["pair_backward", "pair_forward", "saved_shape", "self_backward", "self_forward", "softplus"]


def saved_shape(rows: int, columns: int, width: int, dtype: torch.dtype, one_sweep: bool) -> tuple[int, ...]:
    """Nothing is saved: the backward computes its tiles again."""
    return (0,)
