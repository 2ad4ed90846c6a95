"""Whether an embedding recovers known factors, and up to which ambiguity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite
from ssl_heads.metrics.matching import Correlation, Matching, match_by_search


def mean_correlation_coefficient(
    embeddings: ArrayLike, factors: ArrayLike, correlation: Correlation = "linear"
) -> Matching:
    r"""Mean absolute correlation of each factor with the dimension that is matched to it (MCC).

    .. math:: \max_\pi \frac{1}{k}\sum_{j=1}^{k} |\rho(z_{\pi(j)}, s_j)|

    1 if and only if every factor is a dimension, up to order, sign, scale and shift (``"linear"``), or up to a monotone
    function (``"rank"``). A rotation of the factors scores less, though nothing is lost: see `linear_r2`.

    Args:
        embeddings: Shape (n, d).
        factors: Shape (n, k), the true ones. With d < k, a factor without a dimension counts 0. With NaN or infinity in
            either, every number is NaN.
        correlation: ``"linear"`` (Pearson) or ``"rank"`` (Spearman).

    Raises:
        ValueError: If the numbers of rows differ, there is one row, or the correlation is unknown.
        ImportError: If scipy is missing.

    Reference:
        Hyvärinen and Morioka, Unsupervised feature extraction by time-contrastive learning (NeurIPS 2016).

    Example:
        >>> s = torch.randn(1000, 2)
        >>> round(mean_correlation_coefficient(s[:, [1, 0]] * torch.tensor([3.0, -1.0]), s).mean, 4)
        1.0
    """
    return match_by_search(embeddings, factors, correlation)


@torch.no_grad()
def linear_r2(embeddings: ArrayLike, factors: ArrayLike) -> float:
    r"""How well an affine map of the embedding predicts the factors: fitted on the first half, scored on the second.

    .. math:: \frac{1}{k}\sum_j 1 - \frac{\sum_i (s_{ij} - \hat s_{ij})^2}{\sum_i (s_{ij} - \bar s_j)^2}

    1 if the embedding recovers the factors up to an invertible linear map, rotations included.

    Args:
        embeddings: Shape (n, d), in an order that has nothing to do with the factors.
        factors: Shape (n, k). With NaN or infinity in either, the result is NaN.

    Raises:
        ValueError: If the numbers of rows differ, there are fewer than 2 (d + 1) of them, or a factor does not vary.

    Example:
        >>> s = torch.randn(1000, 2)
        >>> round(linear_r2(s @ torch.tensor([[1.0, 1.0], [-1.0, 1.0]]) + 5, s), 4)
        1.0
    """
    z, s = as_matrix("embeddings", embeddings).cpu().double(), as_matrix("factors", factors).cpu().double()
    n, d = z.shape
    if len(s) != n:
        raise ValueError(
            f"embeddings and factors must hold the same samples, got shapes {tuple(z.shape)} and {tuple(s.shape)}"
        )
    if n < 2 * (d + 1):
        raise ValueError(f"half of {n} rows cannot determine an affine map of {d} dimensions: give {2 * (d + 1)} rows")
    if not finite(z, s):
        return math.nan
    fit, score = slice(0, n // 2), slice(n // 2, n)
    refuse_constant(s[score])
    mean_z, mean_s = z[fit].mean(0), s[fit].mean(0)
    weights = torch.linalg.lstsq(z[fit] - mean_z, s[fit] - mean_s, driver="gelsd").solution
    predicted = (z[score] - mean_z) @ weights + mean_s
    variation = (s[score] - s[score].mean(0)).square().sum(0)
    return float((1 - (s[score] - predicted).square().sum(0) / variation).mean())


def refuse_constant(factors: Tensor) -> None:
    """R^2 divides by how much a factor varies over the samples that are scored."""
    constant = (factors == factors[0]).all(dim=0).nonzero()[:, 0].tolist()
    if constant:
        raise ValueError(f"factor {constant[0]} does not vary: R^2 has no meaning for it")
