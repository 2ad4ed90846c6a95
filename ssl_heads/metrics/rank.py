"""How many directions the embeddings use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics import _check


def effective_rank(features: Tensor) -> float:
    r"""Exponential of the entropy of the normalised singular values.

    .. math:: \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \sigma_k / \sum_l \sigma_l

    Args:
        features: ``(n, d)``, taken as it is: neither centred nor normalised.

    Returns:
        A number between 1 and min(n, d); 0 if every entry is zero.

    Raises:
        ValueError: if ``features`` is not a non-empty floating matrix.

    Reference:
        Roy and Vetterli, The effective rank (2007).

    Example:
        >>> round(effective_rank(torch.eye(16)), 4)
        16.0
    """
    _check.features("features", features)
    x = features.detach()
    singular = torch.linalg.svdvals(x.to(torch.promote_types(x.dtype, torch.float32))).cpu().double()
    total = singular.sum()
    if total == 0:
        return 0.0
    p = singular / total
    return math.exp(-float(torch.xlogy(p, p).sum()))
