"""One block of a similarity matrix whose other blocks lie elsewhere: plain tensors, no autograd.

Kernels take the rows as they are, in half precision too; what comes back is in fp32 (fp64 for fp64 rows).

The log-sum-exps of blocks merge by ``logaddexp``. The gradient of a block needs only the merged ones:
``W_ij = g_i exp(S_ij - row_i) + h_j exp(S_ij - column_j)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_heads.similarity import Impl, dense, implementation, operators
from ssl_heads.similarity.exclusion import Exclusion
from ssl_heads.similarity.tiled import without_infinity


def log_sum_exp(
    query: Tensor, key: Tensor, exclusion: Exclusion, columns: bool, bound: float, impl: Impl
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the block's rows, and of its columns on request (else an empty tensor)."""
    chosen = implementation(impl, query, key.shape[0])
    if chosen == "tiled":
        row, column, _ = operators.pair_lse(query, key, *exclusion, columns, bound)
        return row, column
    if chosen == "triton":
        from ssl_heads.similarity.triton import reduce

        row, by_column = reduce.pair_forward(query, key, exclusion, columns=columns, bound=bound)
    else:
        row, by_column = dense.log_sum_exp(query, key, 1.0, exclusion, columns)
    return row, row.new_empty(0) if by_column is None else by_column


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
    chosen = implementation(impl, query, key.shape[0])
    if chosen == "triton":
        from ssl_heads.similarity.triton.differentiate import Needs, pair_backward

        column = (None, None) if sums[1].numel() == 0 else (sums[1], upstream[1])
        wanted = Needs(*needs, dtype=torch.float32)
        found = pair_backward(query, key, exclusion, sums[0], upstream[0], *column, bound=bound, needs=wanted)
        nothing = sums[0].new_empty(0)
        return nothing if found.query is None else found.query, nothing if found.key is None else found.key
    if chosen == "tiled":
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
    chosen = implementation(impl, query, key.shape[0])
    if chosen == "triton":
        return _softplus_sum_by_kernels(query, key, bias, exclusion, gradient)
    if chosen == "tiled":
        total, *gradients = operators.softplus_sum(query, key, bias, exclusion.offset, exclusion.period, gradient)
        return (total, *gradients)
    s = dense.negatives(query, key, 1.0, exclusion) + bias
    total, weight = -torch.nn.functional.logsigmoid(-s).sum(), s.sigmoid()
    with torch.autocast(query.device.type, enabled=False):
        return total, weight @ key, weight.mT @ query, weight.sum()


def _softplus_sum_by_kernels(
    query: Tensor, key: Tensor, bias: Tensor, exclusion: Exclusion, gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ssl_heads.similarity.triton.differentiate import Needs, softplus_backward
    from ssl_heads.similarity.triton.reduce import softplus_forward

    row_bias = bias.expand(query.shape[0])
    total = softplus_forward(query, key, exclusion, row_bias=row_bias).sum()
    if not gradient:
        nothing = total.new_empty(0)
        return total, nothing, nothing, nothing
    needs = Needs(row_bias=True, dtype=torch.float32)
    found = softplus_backward(query, key, exclusion, torch.ones_like(row_bias), row_bias=row_bias, needs=needs)
    assert found.query is not None
    assert found.key is not None
    assert found.row_bias is not None
    return total, found.query, found.key, found.row_bias.sum()
