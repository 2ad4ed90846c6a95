"""Whether dimensions are active together: cosines between the columns of an embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix
from ssl_heads.metrics._rows import EPS, active_rows, products, unit_rows
from ssl_heads.metrics.streaming import ByActivity


def orthogonality(features: ArrayLike, eps: float = EPS) -> float:
    r"""Mean absolute cosine of two different dimensions: 0 if all are orthogonal, 1 if all are the same.

    .. math::
        \frac{1}{d (d - 1)} \sum_{j \ne k} \frac{|q_j^\top q_k|}{\lVert q_j \rVert_2 \lVert q_k \rVert_2},
        \qquad q_i = f_i / \lVert f_i \rVert_2

    over the d dimensions that are active on some row; columns are not centred. Sparse codes of any origin are nearly
    orthogonal: compare at equal `l0`.

    Args:
        features: Shape (n, d), signed or not; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active.

    Returns:
        A number in [0, 1]; NaN if fewer than two dimensions are active, or an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix, or `eps` is not positive.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 5.

    Example:
        >>> orthogonality(torch.eye(4).repeat(2, 1))
        0.0
    """
    metric = StreamingOrthogonality(eps=eps)
    metric.update(features)
    return metric.compute()


def redundancy(features: ArrayLike, eps: float = EPS) -> float:
    r"""Mean over dimensions of the cosine with the dimension that is most alike.

    .. math:: \frac1d \sum_j \max_{k \ne j} \frac{q_j^\top q_k}{\lVert q_j \rVert_2 \lVert q_k \rVert_2}

    over the d dimensions that are active on some row. 1 if every dimension has a copy, which `orthogonality` does not
    see among many.

    Args:
        features: Shape (n, d), signed or not; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active.

    Returns:
        A number in [-1, 1]; NaN if fewer than two dimensions are active, or an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix, or `eps` is not positive.

    Reference:
        Dreyer et al., Mechanistic understanding and validation of large AI models with SemanticLens (2025).

    Example:
        >>> round(redundancy([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]]), 4)
        1.0
    """
    metric = StreamingRedundancy(eps=eps)
    metric.update(features)
    return metric.compute()


class _Columns(ByActivity):
    """Products of the columns of normalised rows."""

    sums = ("gram", "active_rows")
    gram: Tensor
    active_rows: Tensor

    @torch.no_grad()
    def update(self, features: ArrayLike) -> None:
        """Take in rows (n, d)."""
        x = as_matrix("features", features)
        part = self._part(x)
        if part.finite:
            q = unit_rows(x)
            part.gram, part.active_rows = products(q, q), active_rows(x, self.eps)
        self.merge(part)

    def _cosines(self) -> Tensor:
        """Cosines of the dimensions that are active on some row."""
        alive = self.active_rows > 0
        gram = self.gram[alive][:, alive]
        length = gram.diagonal().sqrt()
        return gram / length / length[:, None]


class StreamingOrthogonality(_Columns):
    """`orthogonality` of rows that come part by part, in O(d^2) memory.

    Attributes:
        gram: Shape (d, d), products of the columns of normalised rows.
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingOrthogonality()
        >>> metric.update(torch.eye(4)[:3])
        >>> metric.update(torch.eye(4)[3:])
        >>> metric.compute()
        0.0
    """

    def compute(self) -> float:
        """The number of all rows seen."""
        if not self._known():
            return math.nan
        cosines = self._cosines().fill_diagonal_(0.0)
        d = len(cosines)
        return float(cosines.abs().sum()) / (d * (d - 1)) if d > 1 else math.nan


class StreamingRedundancy(_Columns):
    """`redundancy` of rows that come part by part, in O(d^2) memory.

    Attributes:
        gram: Shape (d, d), products of the columns of normalised rows.
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingRedundancy()
        >>> metric.update([[1.0, 1.0, 0.0, 0.0]])
        >>> metric.update([[0.0, 0.0, 2.0, 2.0]])
        >>> round(metric.compute(), 4)
        1.0
    """

    def compute(self) -> float:
        """The number of all rows seen."""
        if not self._known():
            return math.nan
        cosines = self._cosines().fill_diagonal_(-math.inf)
        return float(cosines.amax(dim=1).mean()) if len(cosines) > 1 else math.nan
