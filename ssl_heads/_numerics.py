"""The ground floor of every equation: the dtypes it computes in, and the norm of a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads._modes import has_autocast, one_node, saveable


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums over `x`: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


@one_node
def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(accumulator(x))


def promote(x: Tensor) -> Tensor:
    """`at_least_float32` in memory that autograd can save."""
    return saveable(x.to(accumulator(x)))


def widest(*rows: Tensor) -> torch.dtype:
    """The dtype that holds the values of all of these tensors."""
    dtype = rows[0].dtype
    for x in rows[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def one_dtype(*rows: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the widest of their dtypes, float32 at least: a frozen tower may be narrower than a trained one."""
    dtype = torch.promote_types(widest(*rows), torch.float32)
    return tuple(promote(x).to(dtype) for x in rows)


def product_dtype(*rows: Tensor) -> torch.dtype:
    """The dtype that kernels may round rows to for their products: autocast's where it is on, else the widest.

    Float64 rows are never rounded; kernels refuse them.
    """
    device, dtype = rows[0].device.type, widest(*rows)
    if dtype != torch.float64 and has_autocast(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def default_eps(dtype: torch.dtype) -> float:
    """Norm at or below which a row of this dtype counts as zero: 1e-12 in float64, 1e-4 in float16, else 1e-6.

    Below 1e-4 the entries of a float16 row are subnormal, its direction is rounding, and a gradient of 1e4 times the
    upstream one would overflow.
    """
    return {torch.float64: 1e-12, torch.float16: 1e-4}.get(dtype, 1e-6)


def row_norm(x: Tensor, eps: float) -> Tensor:
    """Row norms in float32 or wider; infinite for a zero row, so that the quotient and each derivative are zero."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulator(x))
    return norm.masked_fill(norm <= eps, math.inf)
