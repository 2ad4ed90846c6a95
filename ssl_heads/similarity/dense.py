"""The definition, in a few lines of torch: the oracle of the engine, and the path for small batches."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads.similarity.exclusion import Exclusion


def logits(query: Tensor, key: Tensor, scale: Tensor | float) -> Tensor:
    """``scale * query @ key^T`` in the precision of its inputs, autocast or not."""
    with torch.autocast(query.device.type, enabled=False):
        return (query * scale) @ key.mT


def negatives(query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion) -> Tensor:
    """The logits with ``-inf`` where a pair is left out."""
    matrix = logits(query, key, scale)
    mask = exclusion.mask(*matrix.shape, matrix.device)
    return matrix if mask is None else matrix.masked_fill(mask, -torch.inf)


def log_sum_exp(
    query: Tensor, key: Tensor, scale: Tensor | float, exclusion: Exclusion, columns: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp of the rows, and of the columns on request."""
    matrix = negatives(query, key, scale, exclusion)
    return torch.logsumexp(matrix, dim=1), torch.logsumexp(matrix, dim=0) if columns else None


def softplus_sum(query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor | float, exclusion: Exclusion) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives."""
    matrix = negatives(query, key, scale, exclusion) + bias
    return -torch.nn.functional.logsigmoid(-matrix).sum()
