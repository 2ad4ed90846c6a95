"""How many directions the embeddings use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite
from ssl_heads.metrics._rows import products
from ssl_heads.metrics.streaming import StreamingMetric


def effective_rank(features: ArrayLike) -> float:
    r"""Exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \sigma_k / \sum_l \sigma_l

    Args:
        features: Shape (n, d), taken as it is: neither centred nor normalised.

    Returns:
        A number between 1 and min(n, d); 0 if every entry is zero, NaN if one is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix.

    Reference:
        Roy and Vetterli, The effective rank (2007).

    Example:
        >>> round(effective_rank(torch.eye(16)), 4)
        16.0
    """
    x = as_matrix("features", features)
    if not finite(x):
        return math.nan
    largest = x.abs().max()
    if largest == 0:
        return 0.0
    singular = torch.linalg.svdvals(x / largest).cpu().double()
    return _exponential_entropy(singular)


def _exponential_entropy(singular: Tensor) -> float:
    p = singular / singular.sum()
    return math.exp(-float(torch.xlogy(p, p).sum()))


class StreamingEffectiveRank(StreamingMetric):
    """`effective_rank` of rows that come part by part, in O(d^2) memory.

    The singular values are the square roots of the eigenvalues of the columns' products, so those below 1e-8 of the
    largest are rounding and count as zero.

    Attributes:
        gram: Shape (d, d), products of the columns.

    Example:
        >>> metric = StreamingEffectiveRank()
        >>> metric.update(torch.eye(16)[:10])
        >>> metric.update(torch.eye(16)[10:])
        >>> round(metric.compute(), 4)
        16.0
    """

    sums = ("gram",)
    gram: Tensor

    @torch.no_grad()
    def update(self, features: ArrayLike) -> None:
        """Take in rows (n, d)."""
        x = as_matrix("features", features)
        part = self._part(x)
        if part.finite:
            part.gram = products(x, x)
        self.merge(part)

    def compute(self) -> float:
        """The number of all rows seen."""
        if not self._known():
            return math.nan
        largest = self.gram.abs().max()
        if largest == 0:
            return 0.0
        squares = torch.linalg.eigvalsh(self.gram / largest)
        noise = len(squares) * torch.finfo(squares.dtype).eps * squares.max()
        return _exponential_entropy(squares.where(squares > noise, 0.0).sqrt())
