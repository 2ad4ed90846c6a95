"""How many entries are zero, and how many dimensions are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, as_matrix
from ssl_heads.metrics._rows import EPS, active_rows, unit_rows
from ssl_heads.metrics.streaming import ByActivity


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
    metric = StreamingSparsity(eps=eps)
    metric.update(features)
    return metric.compute()


def l0(features: ArrayLike, eps: float = EPS) -> float:
    r"""Mean number of active dimensions of a row.

    .. math:: \frac{1}{n} \sum_{ij} 1\bigl[\,|q_{ij}| > \varepsilon\,\bigr], \qquad q_i = f_i / \lVert f_i \rVert_2

    Codes are compared at equal L0, because sparse codes of any origin score higher in most other numbers.

    Args:
        features: Shape (n, d), signed or not; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active.

    Returns:
        A number between 0 and d; NaN if an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix, or `eps` is not positive.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 5, as a number of entries.

    Example:
        >>> l0([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]])
        1.5
    """
    metric = StreamingL0(eps=eps)
    metric.update(features)
    return metric.compute()


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
    metric = StreamingAliveDimensions(eps=eps)
    metric.update(features)
    return metric.compute()


def hoyer(features: ArrayLike, eps: float = EPS) -> float:
    r"""Mean Hoyer sparsity of the rows: 0 if all entries of a row are equally large, 1 if one is not zero.

    .. math:: \frac1n \sum_i \frac{\sqrt d - \lVert q_i \rVert_1 / \lVert q_i \rVert_2}{\sqrt d - 1}

    Unlike `sparsity` it has no threshold to pass: small entries count little.

    Args:
        features: Shape (n, d) with d > 1, signed or not. Rows of zeros are left out of the mean.
        eps: Magnitude of a normalised entry above which a dimension is active; the others count as zero.

    Returns:
        A number in [0, 1]; NaN if all rows are zero, or an entry is NaN or infinite.

    Raises:
        ValueError: If `features` is not a non-empty matrix of two columns or more, or `eps` is not positive.

    Reference:
        Hoyer, Non-negative matrix factorization with sparseness constraints (JMLR 2004), section 3.1.

    Example:
        >>> round(hoyer([[0.0, 1.0, 0.0], [2.0, 2.0, 2.0]]), 4)
        0.5
    """
    metric = StreamingHoyer(eps=eps)
    metric.update(features)
    return metric.compute()


class _ActiveRows(ByActivity):
    """On how many rows each dimension is active."""

    sums = ("active_rows",)
    active_rows: Tensor

    @torch.no_grad()
    def update(self, features: ArrayLike) -> None:
        """Take in rows (n, d)."""
        x = as_matrix("features", features)
        part = self._part(x)
        if part.finite:
            part.active_rows = active_rows(x, self.eps)
        self.merge(part)


class StreamingSparsity(_ActiveRows):
    """`sparsity` of rows that come part by part.

    Attributes:
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingSparsity()
        >>> metric.update(torch.eye(4)[:3])
        >>> metric.update(torch.eye(4)[3:])
        >>> metric.compute()
        0.75
    """

    def compute(self) -> float:
        """The number of all rows seen."""
        if not self._known():
            return math.nan
        entries = int(self.rows) * len(self.active_rows)
        return (entries - int(self.active_rows.sum())) / entries


class StreamingL0(_ActiveRows):
    """`l0` of rows that come part by part.

    Attributes:
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingL0()
        >>> metric.update([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]])
        >>> metric.compute()
        1.5
    """

    def compute(self) -> float:
        """The number of all rows seen."""
        return int(self.active_rows.sum()) / int(self.rows) if self._known() else math.nan


class StreamingAliveDimensions(_ActiveRows):
    """`alive_dimensions` of rows that come part by part.

    Attributes:
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingAliveDimensions()
        >>> metric.update([[0.0, 1.0, 0.0]])
        >>> metric.update([[0.0, 2.0, 3.0]])
        >>> metric.compute()
        2
    """

    def compute(self) -> float:
        """The number of all rows seen."""
        return int((self.active_rows > 0).sum()) if self._known() else math.nan


class StreamingHoyer(ByActivity):
    """`hoyer` of rows that come part by part.

    Attributes:
        total: Shape (), the sum over rows.
        counted: Shape (), the rows that are not zero.

    Example:
        >>> metric = StreamingHoyer()
        >>> metric.update([[0.0, 1.0, 0.0]])
        >>> metric.update([[2.0, 2.0, 2.0]])
        >>> round(metric.compute(), 4)
        0.5
    """

    sums = ("total", "counted")
    total: Tensor
    counted: Tensor

    @torch.no_grad()
    def update(self, features: ArrayLike) -> None:
        """Take in rows (n, d)."""
        x = as_matrix("features", features)
        if x.shape[1] == 1:
            raise ValueError(f"a row of one entry is neither sparse nor dense, got features of shape {tuple(x.shape)}")
        part = self._part(x)
        if part.finite:
            q = unit_rows(x).abs()
            q = q.where(q > self.eps, 0.0)
            lengths = torch.stack([q.sum(dim=1), q.norm(dim=1)])
            l1, l2 = lengths[:, lengths[1] > 0].cpu().double()
            part.total = ((x.shape[1] ** 0.5 - l1 / l2) / (x.shape[1] ** 0.5 - 1)).sum()
            part.counted = torch.full_like(part.total, len(l1))
        self.merge(part)

    def compute(self) -> float:
        """The number of all rows seen."""
        return float(self.total / self.counted) if self._known() else math.nan
