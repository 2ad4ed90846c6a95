"""The definition, in a few lines of torch: the oracle of the engine, and the path for small batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads._modes import without_autocast
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
    # The second derivative of the log-sum-exp of nothing is NaN, and zero times NaN too: such rows take another value.
    kept = matrix.masked_fill(mask, -torch.inf).masked_fill(empty, 0)
    return torch.logsumexp(kept, dim).masked_fill(empty.squeeze(dim), -torch.inf)


def softplus_sum(
    query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, exclusion: Exclusion
) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives."""
    matrix = logits(query, key, scale) + bias
    mask = exclusion.mask(matrix.shape[0], matrix.shape[1], matrix.device)
    positive_part = -torch.nn.functional.logsigmoid(-matrix)
    return (positive_part if mask is None else positive_part.masked_fill(mask, 0)).sum()
