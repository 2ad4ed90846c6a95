"""The definition, in a few lines of torch: the oracle of the engine, and the path for small batches.

Above, what autograd differentiates, once and twice. Below, the backend "dense": the same on blocks, in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads._modes import without_autocast
from ssl_heads.similarity.backend import Needs
from ssl_heads.similarity.exclusion import Exclusion


def logits(query: Tensor, key: Tensor, scale: Tensor | float) -> Tensor:
    """``scale * query @ key^T`` in the precision of its inputs, autocast or not."""
    with without_autocast(query):
        return (query * scale) @ key.mT


def negatives(query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion) -> Tensor:
    """The logits with ``-inf`` where a pair is left out."""
    matrix = logits(query, key, scale)
    mask = exclusion.mask(matrix.shape[0], matrix.shape[1], matrix.device)
    return matrix if mask is None else matrix.masked_fill(mask, -torch.inf)


def log_sum_exp(
    query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion, columns: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the rows, and of the columns on request."""
    matrix = logits(query, key, scale)
    mask = exclusion.mask(matrix.shape[0], matrix.shape[1], matrix.device)
    return over_negatives(matrix, mask, 1), over_negatives(matrix, mask, 0) if columns else None


def over_negatives(matrix: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Log-sum-exp of what the mask leaves; ``-inf``, with derivatives of zero, where it leaves nothing."""
    if mask is None:
        return torch.logsumexp(matrix, dim)
    empty = mask.all(dim, keepdim=True)
    # logsumexp of an all-masked row has a NaN second derivative: such rows are computed over zeros and overwritten.
    finite = matrix.masked_fill(mask, -torch.inf).masked_fill(empty, 0)
    return torch.logsumexp(finite, dim).masked_fill(empty.squeeze(dim), -torch.inf)


def softplus_of_negatives(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, exclusion: Exclusion
) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives."""
    matrix = logits(query, key, scale) + bias
    mask = exclusion.mask(matrix.shape[0], matrix.shape[1], matrix.device)
    positive_part = -torch.nn.functional.logsigmoid(-matrix)
    return (positive_part if mask is None else positive_part.masked_fill(mask, 0)).sum()


# ------------------------------------------------------------------------------------------------------------- backend


def saved_shape(rows: int, columns: int, width: int, dtype: torch.dtype, one_sweep: bool) -> tuple[int, ...]:
    """Nothing is saved."""
    return (0,)


def pair_forward(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    exclusion: Exclusion,
    columns: bool,
    one_sweep: bool,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of rows and columns."""
    row, column = log_sum_exp(query, key, scale, exclusion, columns)
    nothing = row.new_empty(0)
    return row, nothing if column is None else column, nothing


def pair_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    row: Tensor,
    column: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    column_gradient: Tensor,
    exclusion: Exclusion,
    one_sweep: bool,
    bound: float,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor]:
    """``scale W k``, ``scale W^T q`` and ``sum_ij W_ij <q_i, k_j>``."""
    s = negatives(query, key, scale, exclusion)
    weight = (s - without_infinity(row)[:, None]).exp() * row_gradient[:, None]
    if column.numel() > 0:
        weight += (s - without_infinity(column)).exp() * column_gradient
    by_query = weight @ key
    return by_query * scale, weight.mT @ (query * scale), (query * by_query).sum().reshape(1)


def self_forward(
    query: Tensor, key: Tensor, scale: Tensor, exclusion: Exclusion, bound: float
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows of a symmetric S."""
    row = log_sum_exp(query, key, scale, exclusion, columns=False)[0]
    return row, row.new_empty(0)


def self_backward(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    row: Tensor,
    saved: Tensor,
    row_gradient: Tensor,
    exclusion: Exclusion,
    bound: float,
    needs_scale: bool,
) -> tuple[Tensor, Tensor]:
    """``scale (W + W^T) k``, and the gradient of the scale."""
    sums, needs = (row, row, saved, row_gradient, row_gradient), Needs(key=False)
    product, _, by_scale = pair_backward(query, key, scale, *sums, exclusion, False, bound, needs)
    return product, by_scale / 2


def softplus_sum(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, exclusion: Exclusion, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(S_ij + b)`` and its gradients of query, key, scale and b."""
    s = negatives(query, key, scale, exclusion) + bias
    total, p = -torch.nn.functional.logsigmoid(-s).sum(), s.sigmoid()
    by_query = p @ key
    return total, by_query * scale, p.mT @ (query * scale), (query * by_query).sum().reshape(1), p.sum().reshape(1)


def without_infinity(log_sum: Tensor) -> Tensor:
    """A row without negatives has the log-sum-exp ``-inf``; ``+inf`` makes each of its weights zero."""
    return torch.where(log_sum == -torch.inf, torch.inf, log_sum)
