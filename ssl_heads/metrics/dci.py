"""Disentanglement, completeness, informativeness: from the importance of each dimension for each factor."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix, finite
from ssl_heads.metrics._optional import optional
from ssl_heads.metrics.identifiability import refuse_constant


class DCI(NamedTuple):
    """The result of `dci`.

    Attributes:
        disentanglement: 1 if every dimension matters for one factor only.
        completeness: 1 if for every factor one dimension only matters.
        informativeness: Mean R^2 of the factors' predictions on the second half of the samples.
        importance: Shape (d, k), of each dimension for each factor; every column sums to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Tensor


def dci(embeddings: ArrayLike, factors: ArrayLike, *, seed: int = 0) -> DCI:
    r"""Predict each factor by gradient-boosted trees and look at which dimensions they use.

    .. math::
        D = \sum_i \rho_i\,(1 - H_k(P_{i\cdot})), \qquad C = \frac{1}{k}\sum_j (1 - H_d(P_{\cdot j}))

    with :math:`P` the importance normalised along the dot, entropies in units of the uniform one, and :math:`\rho_i`
    dimension i's share of all importance. The trees are fitted on the first half of the samples.

    Args:
        embeddings: Shape (n, d), in an order that has nothing to do with the factors.
        factors: Shape (n, k), continuous. With NaN or infinity in either, every number is NaN.
        seed: Seed of the trees.

    Raises:
        ValueError: If the numbers of rows differ, there are fewer than four, or a factor does not vary.
        ImportError: If scikit-learn is missing.

    Reference:
        Eastwood and Williams, A framework for the quantitative evaluation of disentangled representations (ICLR 2018).

    Example:
        >>> s = torch.randn(400, 2)
        >>> dci(s, s).disentanglement > 0.9
        True
    """
    z, s = as_matrix("embeddings", embeddings).cpu().double(), as_matrix("factors", factors).cpu().double()
    n = len(z)
    if len(s) != n or n < 4:
        raise ValueError(
            "embeddings and factors must hold the same four samples or more, got shapes "
            f"{tuple(z.shape)} and {tuple(s.shape)}"
        )
    if not finite(z, s):
        unknown = torch.full((z.shape[1], s.shape[1]), math.nan, dtype=torch.float64, device="cpu")
        return DCI(math.nan, math.nan, math.nan, unknown)
    fit, score = slice(0, n // 2), slice(n // 2, n)
    refuse_constant(s[score])
    ensemble = optional("sklearn.ensemble", "scikit-learn", "DCI")
    columns, scores = [], []
    for factor in s.mT.numpy():
        trees = ensemble.GradientBoostingRegressor(random_state=seed).fit(z[fit].numpy(), factor[fit])
        columns.append(torch.from_numpy(trees.feature_importances_))
        scores.append(float(trees.score(z[score].numpy(), factor[score])))
    importance = torch.stack(columns, dim=1)
    return DCI(
        disentanglement=disentanglement(importance),
        completeness=completeness(importance),
        informativeness=sum(scores) / len(scores),
        importance=importance,
    )


def disentanglement(importance: Tensor) -> float:
    """One minus the entropy of each row of an importance matrix (d, k), weighted by its share of the whole.

    Example:
        >>> disentanglement(torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.5, 0.0]]))
        1.0
    """
    total = importance.sum()
    return float((_concentration(importance) * importance.sum(1) / total).sum()) if total > 0 else 0.0


def completeness(importance: Tensor) -> float:
    """One minus the entropy of each column of an importance matrix (d, k), on average.

    Example:
        >>> completeness(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        1.0
    """
    return float(_concentration(importance.mT).mean())


def _concentration(importance: Tensor) -> Tensor:
    """One minus the entropy of each row, in units of the uniform one; 0 for a row of zeros."""
    total = importance.sum(1, keepdim=True)
    share = importance.double() / torch.where(total > 0, total, 1.0)
    if importance.shape[1] == 1:
        return (total[:, 0] > 0).double()
    entropy = -torch.xlogy(share, share).sum(1) / math.log(importance.shape[1])
    return torch.where(total[:, 0] > 0, 1 - entropy, 0.0)
