"""The definition, in a few lines of torch: the oracle of the engine, and the path for small batches.

Above, what autograd differentiates, once and twice. Below, the same on blocks in closed form: a `BlockBackend`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ssl_heads._modes import without_autocast
from ssl_heads.similarity.backend import LogSum, Matrix, Needs


def logits(matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """S in the precision of its rows, autocast or not, and the mask of the pairs that are left out."""
    with without_autocast(matrix.query):
        values = (matrix.query * matrix.scale) @ matrix.key.mT
    return values, matrix.exclusion.mask(values.shape[0], values.shape[1], values.device)


def over_negatives(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Log-sum-exp of what the mask leaves; `-inf`, with derivatives of zero, where it leaves nothing."""
    if mask is None:
        return torch.logsumexp(values, dim)
    empty = mask.all(dim, keepdim=True)
    # logsumexp of an all-masked row has a NaN second derivative: such rows are computed over zeros and overwritten.
    finite = values.masked_fill(mask, -torch.inf).masked_fill(empty, 0)
    return torch.logsumexp(finite, dim).masked_fill(empty.squeeze(dim), -torch.inf)


def log_sums(matrix: Matrix, columns: bool) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the rows, and of the columns on request."""
    values, mask = logits(matrix)
    return over_negatives(values, mask, 1), over_negatives(values, mask, 0) if columns else None


def softplus_of_negatives(matrix: Matrix, bias: Tensor) -> Tensor:
    """`sum_ij softplus(S_ij + bias)`."""
    values, mask = logits(matrix)
    positive_part = -logsigmoid(-(values + bias))
    return (positive_part if mask is None else positive_part.masked_fill(mask, 0)).sum()


# ---------------------------------------------------------------------------------------------------------- on blocks


def pair_forward(matrix: Matrix, columns: bool, one_sweep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of rows and columns; nothing is saved."""
    row, column = log_sums(matrix, columns)
    nothing = row.new_empty(0)
    return row, nothing if column is None else column, nothing


def pair_backward(
    matrix: Matrix, row: LogSum, column: LogSum | None, saved: Tensor, one_sweep: bool, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    """`scale W k`, `scale W^T q` and `sum_ij W_ij <q_i, k_j>`, needed or not."""
    values = negatives(matrix)
    weight = (values - without_infinity(row.value)[:, None]).exp() * row.gradient[:, None]
    if column is not None:
        weight += (values - without_infinity(column.value)).exp() * column.gradient
    by_query, by_key = weight @ matrix.key, weight.mT @ (matrix.query * matrix.scale)
    return by_query * matrix.scale, by_key, (matrix.query * by_query).sum().reshape(1)


def softplus(matrix: Matrix, bias: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`sum_ij log(1 + exp(S_ij + b))` and its gradients of query, key, scale and b, asked for or not."""
    values = negatives(matrix) + bias
    total, p = -logsigmoid(-values).sum(), values.sigmoid()
    by_query, by_key = p @ matrix.key, p.mT @ (matrix.query * matrix.scale)
    return total, by_query * matrix.scale, by_key, (matrix.query * by_query).sum().reshape(1), p.sum().reshape(1)


def negatives(matrix: Matrix) -> Tensor:
    """S with `-inf` where a pair is left out."""
    values, mask = logits(matrix)
    return values if mask is None else values.masked_fill(mask, -torch.inf)


def without_infinity(log_sum: Tensor) -> Tensor:
    """The log-sum-exp of a row without negatives, `-inf`, becomes `+inf`: each of its weights is then zero."""
    return torch.where(log_sum == -torch.inf, torch.inf, log_sum)
