"""How many entries are zero, and how many dimensions are not."""

from __future__ import annotations

import math

from ssl_heads._check import positive
from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite
from ssl_heads.metrics._rows import EPS, active


def sparsity(features: ArrayLike, eps: float = EPS) -> float:
    r"""Share of entries that are zero.

    .. math:: \frac{1}{n d} \sum_{ij} 1\bigl[\,|q_{ij}| \le \varepsilon\,\bigr], \qquad q_i = f_i / \lVert f_i \rVert_2

    Args:
        features: Shape (n, d), signed or not; rows are normalised here. A zero row is all zeros.
        eps: Magnitude of a normalised entry above which a dimension is active; the others count as zero.

    Returns:
        A number in [0, 1]; one minus the density. NaN if an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix, or `eps` is not positive.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 5.

    Example:
        >>> import torch
        >>> sparsity(torch.eye(4))
        0.75
    """
    x = as_matrix("features", features)
    positive("eps", eps)
    return int((~active(x, eps)).sum()) / x.numel() if finite(x) else math.nan


def alive_dimensions(features: ArrayLike, eps: float = EPS) -> float:
    r"""Count the dimensions that are active on some row.

    .. math:: \sum_j \max_i 1\bigl[\,|q_{ij}| > \varepsilon\,\bigr], \qquad q_i = f_i / \lVert f_i \rVert_2

    Args:
        features: Shape (n, d), signed or not; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active.

    Returns:
        A whole number, an int; NaN if an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix, or `eps` is not positive.

    Example:
        >>> import torch
        >>> alive_dimensions(torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]))
        2
    """
    x = as_matrix("features", features)
    positive("eps", eps)
    return int(active(x, eps).any(dim=0).sum()) if finite(x) else math.nan
