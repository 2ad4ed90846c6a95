"""Seed stability: whether the dimensions of one training return in another."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from ssl_heads._check import fraction
from ssl_heads.metrics._inputs import ArrayLike, same_samples, whole
from ssl_heads.metrics._optional import optional
from ssl_heads.metrics._rows import EPS, active_rows, doubles, sum_of
from ssl_heads.metrics.streaming import ByActivity


class SeedStability(NamedTuple):
    """The result of `seed_stability`.

    Attributes:
        mean: Mean correlation over the pairs; NaN if no dimension is counted in either.
        share: Share of the pairs whose correlation exceeds the threshold.
        per_dimension: Shape (p,), the correlation of each dimension of a with its partner, 0 where none was left, NaN
            for a dimension that is not counted; float64, on the CPU.
        order: Shape (p,), the dimension of b that each has as its partner; -1 for none; on the CPU.
    """

    mean: float
    share: float
    per_dimension: Tensor
    order: Tensor


def seed_stability(
    features_a: ArrayLike,
    features_b: ArrayLike,
    *,
    threshold: float = 0.7,
    eps: float = EPS,
    min_support: int = 1,
) -> SeedStability:
    r"""Correlation of the dimensions of two trainings, paired one to one so that the sum is largest.

    .. math::
        \frac{1}{\max(p, q)} \max_\pi \sum_j |\rho(a_j, b_{\pi(j)})|, \qquad
        \frac{1}{\max(p, q)} \sum_j 1\bigl[\,|\rho(a_j, b_{\pi(j)})| > 0.7\,\bigr]

    over the p and q dimensions that are active on `min_support` rows or more; those that are left alone count 0. Start
    the two trainings from different random numbers: a shared start, of an initialisation or of k-means, is not
    stability. A search over permutations finds chance agreement too, most of all where a dimension is active on few
    rows.

    Args:
        features_a: Shape (n, p), of one training.
        features_b: Shape (n, q), of another, the same samples.
        threshold: Absolute correlation above which a dimension has returned.
        eps: Magnitude of a normalised entry above which a dimension is active.
        min_support: Least number of rows on which a counted dimension is active.

    Returns:
        With NaN or infinity in either every number is NaN, and the order -1.

    Raises:
        ValueError: If the numbers of rows differ, there is one row, `threshold` is not between 0 and 1, `eps` is not
            positive or `min_support` is below 1.
        ImportError: If scipy is missing.

    Reference:
        Song et al., Mechanistic interpretability should prioritize feature consistency (2025, arXiv 2505.20254):
        the pairwise mean correlation coefficient (PW-MCC), here of activations.

    Example:
        >>> z = torch.randn(100, 3)
        >>> round(seed_stability(z, z[:, [2, 0, 1]]).mean, 4)
        1.0
    """
    metric = StreamingSeedStability(threshold=threshold, eps=eps, min_support=min_support)
    metric.update(features_a, features_b)
    return metric.compute()


class StreamingSeedStability(ByActivity):
    r"""`seed_stability` of rows that come part by part, in O(p q) memory.

    Sums are of deviations from the mean; two parts with the means :math:`m` and :math:`m'` add
    :math:`\frac{n n'}{n + n'} (m - m')(m - m')^\top` to them, so that large means do not cancel.

    Args:
        threshold: Absolute correlation above which a dimension has returned.
        eps: Magnitude of a normalised entry above which a dimension is active.
        min_support: Least number of rows on which a counted dimension is active.

    Attributes:
        mean: Shape (p + q,), of the dimensions of both.
        squares: Shape (p + q,), the sums of squared deviations.
        products: Shape (p, q), the sums of products of deviations.
        active_rows: Shape (p + q,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingSeedStability()
        >>> for z in torch.randn(2, 50, 3):
        ...     metric.update(z, z[:, [2, 0, 1]])
        >>> metric.compute().order
        tensor([1, 2, 0])
    """

    settings = ("threshold", "eps", "min_support")
    sums = ("mean", "squares", "products", "active_rows")
    mean: Tensor
    squares: Tensor
    products: Tensor
    active_rows: Tensor

    def __init__(self, *, threshold: float = 0.7, eps: float = EPS, min_support: int = 1) -> None:
        self.threshold = fraction("threshold", threshold)
        self.min_support = whole("min_support", min_support, least=1)
        super().__init__(eps=eps)

    @torch.no_grad()
    def update(self, features_a: ArrayLike, features_b: ArrayLike) -> None:
        """Take in rows (n, p) and the rows (n, q) of the same samples."""
        x, y = same_samples("features_a", features_a, "features_b", features_b)
        part = self._part(x, y)
        if part.finite:
            mean_x, mean_y = sum_of(x) / len(x), sum_of(y) / len(x)
            part.mean = torch.cat([mean_x, mean_y])
            part.active_rows = torch.cat([active_rows(z, self.eps) for z in (x, y)])
            for a, b in doubles(x, y):
                a, b = a - mean_x.to(a.device), b - mean_y.to(b.device)
                part.squares = part.squares + torch.cat([a.square().sum(dim=0), b.square().sum(dim=0)]).cpu()
                part.products = part.products + (a.mT @ b).cpu()
        self.merge(part)

    def _add(self, other: Self) -> None:
        n, m = int(self.rows), int(other.rows)
        apart, width = other.mean - self.mean, int(self.widths[0])
        mean = self.mean + m / (n + m) * apart
        super()._add(other)
        self.mean = mean
        self.squares = self.squares + n * m / (n + m) * apart.square()
        self.products = self.products + n * m / (n + m) * apart[:width, None] * apart[width:]

    def compute(self) -> SeedStability:
        """The numbers of all rows seen."""
        if not self._known():
            return SeedStability(math.nan, math.nan, self._unknown(), self._unknown(-1))
        if int(self.rows) == 1:
            raise ValueError(f"one sample has no correlation, got widths {self.widths.tolist()}")
        optimize = optional("scipy.optimize", "scipy", "the search for a matching")
        counted = self.active_rows >= self.min_support
        mine, theirs = (x.nonzero()[:, 0] for x in torch.split(counted, self.widths.tolist()))
        table = self._correlations()[mine][:, theirs]
        rows, columns = (torch.from_numpy(x) for x in optimize.linear_sum_assignment(table.numpy(), maximize=True))
        found, order = self._unknown(), self._unknown(-1)
        found[mine] = 0.0
        found[mine[rows]], order[mine[rows]] = table[rows, columns], theirs[columns]
        pairs = max(len(mine), len(theirs)) or math.nan
        return SeedStability(float(found.nansum()) / pairs, int((found > self.threshold).sum()) / pairs, found, order)

    def _correlations(self) -> Tensor:
        """Absolute correlations (p, q); 0 for a dimension that varies by its rounding only."""
        constant = self.squares <= 1e-20 * (self.squares + self.rows * self.mean.square())
        length = self.squares.masked_fill(constant, math.inf).sqrt()
        x, y = torch.split(length, self.widths.tolist())
        cosines: Tensor = self.products / x[:, None] / y
        return cosines.abs().clamp_max(1.0)
