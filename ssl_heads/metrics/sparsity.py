"""How many entries are zero, and how many dimensions are not."""

from __future__ import annotations

from torch import Tensor

from ssl_heads.functional.normalize import safe_normalize
from ssl_heads.metrics import _check


def sparsity(features: Tensor, eps: float = 1e-5) -> float:
    r"""Share of entries that are zero.

    .. math:: \frac{1}{n d} \sum_{ij} 1\bigl[\,|q_{ij}| < \varepsilon\,\bigr], \qquad q_i = f_i / \lVert f_i \rVert_2

    Args:
        features: ``(n, d)``, signed or not; rows are normalised here. A zero row is all zeros.
        eps: magnitude of a normalised entry below which it counts as zero.

    Returns:
        A number in [0, 1]; one minus the density.

    Raises:
        ValueError: if ``features`` is not a non-empty floating matrix, or ``eps`` is not positive.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 5.

    Example:
        >>> import torch
        >>> sparsity(torch.eye(4))
        0.75
    """
    _check.features("features", features)
    _check.positive("eps", eps)
    zeros = int((safe_normalize(features.detach().float(), eps=0.0).abs() < eps).sum())
    return zeros / features.numel()


def alive_dimensions(features: Tensor) -> int:
    """Count the dimensions that are not zero on every row.

    Args:
        features: ``(n, d)``.

    Raises:
        ValueError: if ``features`` is not a non-empty floating matrix.

    Example:
        >>> import torch
        >>> alive_dimensions(torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]))
        2
    """
    _check.features("features", features)
    return int((features != 0).any(dim=0).sum())
