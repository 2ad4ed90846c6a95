"""How many directions the embeddings use."""

from __future__ import annotations

import math

import torch

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite


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
    p = singular / singular.sum()
    return math.exp(-float(torch.xlogy(p, p).sum()))
