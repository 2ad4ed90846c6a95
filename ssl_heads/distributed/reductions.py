"""Reductions over the keys of all ranks: of this process alone, gathered, or sent round a ring.

Losses call these; one process is one block of the matrix.
"""

from __future__ import annotations

import functools
import math

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import assert_never

from ssl_heads import similarity
from ssl_heads.distributed import ring
from ssl_heads.distributed.collectives import global_log_sum_exp
from ssl_heads.distributed.shard import Pairs, Shard
from ssl_heads.similarity import Impl, gram


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    *,
    columns: bool = False,
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the own rows among the keys of all ranks, and of the own columns on request.

    Args:
        query: The own rows, of shape (n, d), or (views n, d) stacked view by view.
        key: The own keys, of shape (views n, d) stacked view by view.
        scale: Multiplies the logits.
        pairs: Which pairs count.
        columns: Whether the log-sum-exp of the own keys over the queries of all ranks is wanted too.
        bound: The largest `|logit|` where the caller knows it.
        dtype: The dtype that kernels may round rows to for their products; None leaves them as they are.
        impl: See `ssl_heads.similarity.Impl`.

    Returns:
        One value an own row, and one an own key or None.
    """
    shard = pairs.shard
    reduce = functools.partial(similarity.log_sum_exp, columns=columns, bound=bound, dtype=dtype, impl=impl)
    if shard.gather == "none":
        return reduce(query, key, scale, exclusion=pairs.exclusion_for_block(shard.rank, query, key))
    if shard.gather == "ring":
        row, column = ring.log_sum_exp(query * scale, key, pairs, columns, bound, dtype, impl)
        return row, column if columns else None
    if shard.gather != "all":
        assert_never(shard.gather)
    keys = shard.gathered(key)
    exclusion = pairs.exclusion_for_all(len(keys) // shard.total)
    views = [reduce(view, keys, scale, exclusion=exclusion) for view in torch.split(query, shard.rows)]
    row = torch.cat([row for row, _ in views])
    if not columns:
        return row, None
    partial_column = functools.reduce(torch.logaddexp, [column for _, column in views if column is not None])
    column = global_log_sum_exp(partial_column, shard.group)
    return row, rearrange(column, "(views n) -> views n", n=shard.total)[:, shard.own].flatten()


def self_log_sum_exp(
    x: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    *,
    weight: Tensor | None = None,
    bound: float = math.inf,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Log-sum-exp over the negatives of the own rows of `scale * x diag(weight) x^T`, x of all ranks.

    The block of one process is symmetric, and half of it is computed.

    Args:
        x: The own rows, of shape (views n, d) stacked view by view.
        scale: Multiplies the logits.
        pairs: Which pairs count.
        weight: One weight a dimension, of shape (d,), or None for ones.
        bound: The largest `|logit|` where the caller knows it.
        dtype: The dtype that kernels may round rows to for their products; None leaves them as they are.
        impl: See `ssl_heads.similarity.Impl`.

    Returns:
        One value an own row.
    """
    shard = pairs.shard
    if shard.gather == "none":
        exclusion = pairs.exclusion_for_block(shard.rank, x, x)
        return similarity.self_log_sum_exp(
            x, scale, weight=weight, exclusion=exclusion, bound=bound, dtype=dtype, impl=impl
        )
    return log_sum_exp(x if weight is None else x * weight, x, scale, pairs, bound=bound, dtype=dtype, impl=impl)[0]


def softplus_sum(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    bias: Tensor,
    pairs: Pairs,
    *,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`sum_ij softplus(scale * <q_i, k_j> + bias)` over the negatives of the own rows among the keys of all ranks."""
    shard = pairs.shard
    reduce = functools.partial(similarity.softplus_sum, dtype=dtype, impl=impl)
    if shard.gather == "none":
        return reduce(query, key, scale, bias, exclusion=pairs.exclusion_for_block(shard.rank, query, key))
    if shard.gather == "ring":
        return ring.softplus_sum(query * scale, key, bias, pairs, dtype, impl)
    if shard.gather == "all":
        return reduce(query, shard.gathered(key), scale, bias, exclusion=pairs.exclusion_for_all(1))
    assert_never(shard.gather)


def class_sum(keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
    """For each own row the sum of the keys of its class over all ranks.

    The matrix [labels_i = labels_j] is symmetric, so that the backward of the sum round the ring is the same sum. Keys
    that a log-sum-exp also compares with are gathered for both.

    Args:
        keys: The own keys, of shape (n, d).
        labels: Integers of all N rows, from 0 to N - 1 as `ssl_heads.functional.groups.group_index` numbers them.
        shard: Where the rows lie.

    Returns:
        Shape (n, d).
    """
    if shard.gather == "ring":
        return ring.class_sum(keys, labels, shard)
    if shard.gather == "none" or shard.gather == "all":
        everyone = shard.gathered(keys)
        return torch.zeros_like(everyone).index_add(0, labels, everyone)[labels[shard.own]]
    assert_never(shard.gather)


def square_sum(query: Tensor, key: Tensor, shard: Shard) -> Tensor:
    """`sum_ij <q_i, k_j>^2` over the rows of all ranks."""
    if shard.is_local:
        return gram.square_sum(query, key)
    of_query, of_key = shard.all_reduce(torch.stack([gram.moment(query), gram.moment(key)]))
    total: Tensor = (of_query * of_key).sum()
    return total


def weighted_square_sum(x: Tensor, weight: Tensor, shard: Shard) -> Tensor:
    """`sum_ij (x_i^T diag(w) x_j)^2` over the rows of all ranks."""
    if shard.is_local:
        return gram.weighted_square_sum(x, weight)
    moment: Tensor = shard.all_reduce(gram.moment(x))
    return (weight[:, None] * moment.square() * weight).sum()


def distance_from_identity(x: Tensor, shard: Shard) -> Tensor:
    """`||x^T x / N - I||_F^2` over the N rows of all ranks."""
    if shard.is_local:
        return gram.distance_from_identity(x)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    difference: Tensor = shard.all_reduce(gram.moment(x)) / shard.total - identity
    return difference.square().sum()
