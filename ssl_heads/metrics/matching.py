"""Which dimension of one embedding is which of another: by search, or by an order that both already have."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, as_tensor, finite
from ssl_heads.metrics._optional import optional

Correlation = Literal["linear", "rank"]


class Matching(NamedTuple):
    """The result of the matching functions.

    Attributes:
        mean: Mean of `per_dimension`.
        per_dimension: Shape (k,), the absolute correlation of each matched pair, float64, on the CPU.
        order: Shape (k,), the dimension of the first embedding that each pair has; -1 where there was none left.
    """

    mean: float
    per_dimension: Tensor
    order: Tensor


@torch.no_grad()
def absolute_correlations(a: ArrayLike, b: ArrayLike, correlation: Correlation = "linear") -> Tensor:
    """Absolute correlation of every dimension of `a` with every dimension of `b`.

    Args:
        a: Shape (n, p).
        b: Shape (n, q), the same samples.
        correlation: ``"linear"`` (Pearson) or ``"rank"`` (Spearman, ties share their mean rank).

    Returns:
        Shape (p, q), float64, on the CPU. A constant dimension correlates with nothing: 0. With NaN or infinity in
        `a` or `b` every entry is NaN.

    Raises:
        ValueError: If the numbers of rows differ, there is one row, or the correlation is unknown.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 5.0], [2.0, 6.0]])
        >>> absolute_correlations(x, x[:, :1].exp(), "rank").round(decimals=4)
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    x, y = as_matrix("a", a).cpu().double(), as_matrix("b", b).cpu().double()
    if len(x) != len(y):
        raise ValueError(f"a and b must hold the same samples, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    if len(x) < 2:
        raise ValueError(f"one sample has no correlation, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    if correlation not in get_args(Correlation):
        raise ValueError(f"correlation must be 'linear' or 'rank', got {correlation!r}")
    if not finite(x, y):
        return x.new_full((x.shape[1], y.shape[1]), math.nan)
    x, y = (_standardised(ranks(v) if correlation == "rank" else v) for v in (x, y))
    return (x.mT @ y).abs().clamp_max(1.0)


def _standardised(x: Tensor) -> Tensor:
    """Centred columns of length one; a column that varies by its rounding only is zero."""
    centred = x - x.mean(dim=0)
    length = centred.norm(dim=0)
    constant = length <= 1e-10 * x.norm(dim=0)
    return torch.where(constant, 0.0, centred / torch.where(constant, 1.0, length))


def ranks(x: Tensor) -> Tensor:
    """Ranks 0, 1, ... within each column; equal values share their mean rank.

    Args:
        x: Shape (n, d).

    Returns:
        Shape (n, d), float64, on the CPU.

    Example:
        >>> ranks(torch.tensor([[3.0], [1.0], [3.0]])).T
        tensor([[1.5000, 0.0000, 1.5000]], dtype=torch.float64)
    """
    columns = []
    for column in x.detach().cpu().unbind(dim=1):
        _, which, counts = torch.unique(column, return_inverse=True, return_counts=True)
        columns.append((counts.cumsum(0) - (counts + 1) / 2).double()[which])
    return torch.stack(columns, dim=1)


def match_by_search(a: ArrayLike, b: ArrayLike, correlation: Correlation = "linear") -> Matching:
    r"""Pair the dimensions of two embeddings one to one, so that the sum of absolute correlations is largest.

    .. math:: \max_\pi \frac{1}{q}\sum_{j=1}^{q} |\rho(a_{\pi(j)}, b_j)|

    With true latents as `b` this is the mean correlation coefficient. A search over permutations finds chance
    agreement too: compare with the value for unrelated embeddings of the same size.

    Args:
        a: Shape (n, p).
        b: Shape (n, q), the same samples. With p < q, dimensions of `b` that are left alone count 0.
        correlation: ``"linear"`` or ``"rank"``.

    Returns:
        One pair for each dimension of `b`, in its order. With NaN or infinity every number is NaN, and the order -1.

    Raises:
        ValueError: If the numbers of rows differ, there is one row, or the correlation is unknown.
        ImportError: If scipy is missing.

    Example:
        >>> z = torch.randn(100, 3)
        >>> match_by_search(-2 * z[:, [2, 0, 1]], z).order
        tensor([1, 2, 0])
    """
    table = absolute_correlations(a, b, correlation)
    if not finite(table):
        return _unknown(table.shape[1])
    optimize = optional("scipy.optimize", "scipy", "the search for a matching")
    rows, columns = optimize.linear_sum_assignment(table.numpy(), maximize=True)
    order = torch.full(table.shape[1:], -1, dtype=torch.int64, device="cpu")
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    found = table.gather(0, order.clamp_min(0)[None])[0].where(order >= 0, 0.0)
    return Matching(float(found.mean()), found, order)


def match_by_importance(
    a: ArrayLike,
    importance_a: ArrayLike,
    b: ArrayLike,
    importance_b: ArrayLike,
    correlation: Correlation = "linear",
) -> Matching:
    """Pair the j-th most important dimension of one embedding with the j-th of the other: nothing is searched.

    Two runs of tri-factor contrast should agree like this, up to signs; `per_dimension[:10].mean()` is the agreement
    of the ten most important dimensions.

    Args:
        a: Shape (n, d), the first run's embeddings.
        importance_a: Shape (d,), for instance of `ssl_heads.FeatureImportance`, or any score.
        b: Shape (n, d), the second run's, of the same samples.
        importance_b: Shape (d,).
        correlation: ``"linear"`` or ``"rank"``.

    Returns:
        One pair for each dimension, the most important first. With NaN or infinity anywhere every number is NaN, and
        the order -1.

    Raises:
        ValueError: If shapes do not fit or the correlation is unknown.

    Example:
        >>> z, s = torch.randn(100, 3), torch.tensor([3.0, 2.0, 1.0])
        >>> match_by_importance(z, s, -z[:, [2, 0, 1]], s[[2, 0, 1]]).order
        tensor([0, 1, 2])
    """
    x, y = as_matrix("a", a), as_matrix("b", b)
    score_x, score_y = as_tensor("importance_a", importance_a).cpu(), as_tensor("importance_b", importance_b).cpu()
    if score_x.shape != x.shape[1:] or score_y.shape != y.shape[1:] or x.shape != y.shape:
        raise ValueError(
            f"expected two embeddings (n, d), each with importance (d,), got {tuple(x.shape)} with "
            f"{tuple(score_x.shape)} and {tuple(y.shape)} with {tuple(score_y.shape)}"
        )
    table = absolute_correlations(x, y, correlation)
    if not finite(table, score_x, score_y):
        return _unknown(x.shape[1])
    order_x, order_y = (s.argsort(descending=True, stable=True) for s in (score_x, score_y))
    found = table[order_x, order_y]
    return Matching(float(found.mean()), found, order_x)


def _unknown(count: int) -> Matching:
    """The result for embeddings that hold NaN."""
    unknown = torch.full((count,), math.nan, dtype=torch.float64, device="cpu")
    return Matching(math.nan, unknown, torch.full_like(unknown, -1, dtype=torch.int64))
