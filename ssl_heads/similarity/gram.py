"""Quadratic losses through d x d moments: exact, O(n d^2), and differentiable twice."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor

from ssl_heads._modes import without_autocast


def moment(x: Tensor) -> Tensor:
    """`x^T x` of shape (d, d)."""
    with without_autocast(x):
        return x.mT @ x


def square_sum(query: Tensor, key: Tensor) -> Tensor:
    """`sum_ij <q_i, k_j>^2 = <q^T q, k^T k>`, on whichever side is smaller."""
    n, d = query.shape
    m = key.shape[0]
    with without_autocast(query):
        if n * m <= d * (n + m):
            return (query @ key.mT).square().sum()
        return (moment(query) * moment(key)).sum()


def weighted_square_sum(x: Tensor, weight: Tensor) -> Tensor:
    """`sum_ij (x_i^T diag(w) x_j)^2`: one moment serves both sides of the symmetric product."""
    n, d = x.shape
    with without_autocast(x):
        if n <= d:
            return ((x * weight) @ x.mT).square().sum()
        return einsum(weight, moment(x).square(), weight, "a, a b, b ->")


def distance_from_identity(x: Tensor) -> Tensor:
    """`||x^T x / n - I||_F^2`, through the n x n side when there are fewer rows than columns."""
    n, d = x.shape
    if n >= d:
        return (moment(x) / n - torch.eye(d, dtype=x.dtype, device=x.device)).square().sum()
    with without_autocast(x):
        inner = (x @ x.mT) / n
    return inner.square().sum() - 2 * inner.diagonal().sum() + d
