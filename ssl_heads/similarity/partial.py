"""One block of a similarity matrix whose other blocks lie elsewhere: plain tensors, no autograd.

The log-sum-exps of blocks merge by ``logaddexp``. The gradient of a block needs only the merged ones:
``W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads.similarity import Impl, dense, implementation, operators
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.tiled import without_infinity


def _is_dense(impl: Impl, query: Tensor, key: Tensor) -> bool:
    """A block has no fused kernel: ``auto`` takes tiles in its place, and who asks for the kernel is told."""
    if impl == "triton":
        raise ValueError('gather="ring" runs over tiles: pass impl="auto" or impl="tiled", or gather="all"')
    return implementation(impl, query, key.shape[0]) == "dense"


def log_sum_exp(
    query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool, bound: float, impl: Impl
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the block's rows, and of its columns on request (else an empty tensor)."""
    if _is_dense(impl, query, key):
        row, column = dense.log_sum_exp(query, key, 1.0, exclusion, columns)
        return row, query.new_empty(0) if column is None else column
    row, column, _ = operators.pair_lse(query, key, *exclusion, columns, bound)
    return row, column


def log_sum_exp_gradient(
    query: Tensor,
    key: Tensor,
    sums: tuple[Tensor, Tensor],
    upstream: tuple[Tensor, Tensor],
    exclusion: Exclusion,
    bound: float,
    needs: tuple[bool, bool],
    impl: Impl,
) -> tuple[Tensor, Tensor]:
    """``W k`` and ``W^T q``, empty where not needed, from the merged log-sum-exps of rows and columns."""
    if not _is_dense(impl, query, key):
        query_gradient, key_gradient = operators.pair_lse_backward(
            query, key, *sums, query.new_empty(0), *(g.contiguous() for g in upstream), *exclusion, bound, *needs
        )
        return query_gradient, key_gradient
    s = dense.negatives(query, key, 1.0, exclusion)
    weight = (s - without_infinity(sums[0])[:, None]).exp() * upstream[0][:, None]
    if sums[1].numel():
        weight += (s - without_infinity(sums[1])).exp() * upstream[1]
    with torch.autocast(query.device.type, enabled=False):
        return (weight @ key if needs[0] else query.new_empty(0)), (weight.mT @ query if needs[1] else key.new_empty(0))


def softplus_sum(
    query: Tensor, key: Tensor, bias: Tensor, exclusion: Exclusion, impl: Impl, gradient: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``sum_ij softplus(S_ij + b)`` of the block, and on request its gradients with respect to query, key and b."""
    if not _is_dense(impl, query, key):
        total, *gradients = operators.softplus_sum(query, key, bias, exclusion.offset, exclusion.period, gradient)
        return (total, *gradients)
    s = dense.negatives(query, key, 1.0, exclusion) + bias
    total, weight = -torch.nn.functional.logsigmoid(-s).sum(), s.sigmoid()
    with torch.autocast(query.device.type, enabled=False):
        return total, weight @ key, weight.mT @ query, weight.sum()
