"""Reductions over the keys of all ranks, gathered or travelling."""

from __future__ import annotations

import functools
import math

import torch
from einops import rearrange
from torch import Tensor

from ssl_heads import similarity
from ssl_heads.distributed import ring
from ssl_heads.distributed.collectives import global_log_sum_exp
from ssl_heads.distributed.shard import Pairs, Shard
from ssl_heads.similarity import Impl


def log_sum_exp(
    query: Tensor,
    key: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    *,
    columns: bool = False,
    bound: float = math.inf,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp over the negatives of the own rows among the keys of all ranks, and of the own columns on request.

    Args:
        query: The own rows, of shape (n, d), or (views n, d) stacked view by view.
        key: The own keys, of shape (views n, d) stacked view by view.
        scale: Multiplies the logits.
        pairs: Which pairs count.
        columns: Whether the log-sum-exp of the own keys over the queries of all ranks is wanted too.
        bound: The largest ``|logit|`` where the caller knows it.
        impl: See `ssl_heads.similarity.Impl`.

    Returns:
        One value an own row, and one an own key or None.
    """
    shard = pairs.shard
    if shard.gather == "ring":
        similarity.check_impl(impl)
        row, column = ring.log_sum_exp(query * scale, key, pairs, columns, bound, impl)
        return row, column if columns else None
    keys = shard.gathered(key)
    exclusion = pairs.with_all(len(keys) // shard.total)
    views = [
        similarity.log_sum_exp(
            view, keys, scale, exclusion=exclusion, columns=columns, bound=bound, dtype=shard.dtype, impl=impl
        )
        for view in torch.split(query, shard.rows)
    ]
    row = torch.cat([row for row, _ in views])
    if not columns:
        return row, None
    partial_column = functools.reduce(torch.logaddexp, [column for _, column in views if column is not None])
    column = global_log_sum_exp(partial_column, shard.group)
    return row, rearrange(column, "(views n) -> views n", n=shard.total)[:, shard.own].flatten()


def softplus_sum(query: Tensor, key: Tensor, scale: Tensor | float, bias: Tensor, pairs: Pairs, impl: Impl) -> Tensor:
    """``sum_ij softplus(scale * <q_i, k_j> + bias)`` over the negatives of the own rows among the keys of all ranks."""
    shard = pairs.shard
    if shard.gather == "ring":
        similarity.check_impl(impl)
        return ring.softplus_sum(query * scale, key, bias, pairs, impl)
    keys = shard.gathered(key)
    exclusion = pairs.with_all(1)
    return similarity.softplus_sum(query, keys, scale, bias, exclusion=exclusion, dtype=shard.dtype, impl=impl)


def class_sum(keys: Tensor, labels: Tensor, shard: Shard) -> Tensor:
    """For each own row the sum of the keys of its class over all ranks.

    The matrix [labels_i = labels_j] is symmetric, so that the backward of the travelling sum is the same sum.

    Args:
        keys: The own keys, of shape (n, d).
        labels: Integers of all N rows.
        shard: Where the rows lie.

    Returns:
        Shape (n, d).
    """
    return ring.class_sum(keys, labels, shard)
