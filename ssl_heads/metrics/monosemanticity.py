"""Monosemanticity: whether what activates a dimension is alike in the eyes of another encoder."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from typing_extensions import Self

from ssl_heads.metrics._inputs import ArrayLike, same_samples
from ssl_heads.metrics._rows import EPS, active_rows, doubles, refuse_zero_rows, unit_rows
from ssl_heads.metrics.streaming import ByActivity


def monosemanticity(activations: ArrayLike, embeddings: ArrayLike, *, eps: float = EPS) -> Tensor:
    r"""Mean cosine of the pairs of samples that activate a dimension, weighted by both activations.

    .. math::
        \mathrm{MS}_j = \frac{\sum_{n < m} a_{nj} a_{mj} \cos(e_n, e_m)}{\sum_{n < m} a_{nj} a_{mj}}
        = \frac{\lVert A_j^\top E \rVert^2 - \sum_n a_{nj}^2}{\bigl(\sum_n a_{nj}\bigr)^2 - \sum_n a_{nj}^2}

    with each dimension of a brought to [0, 1], its least activation at 0, and the rows of E of length one. The second
    form is exact and needs no pair: O(n d e) time, O(d e) memory.

    Untrained codes score as high as trained ones: read it beside `controls`. An encoder whose embeddings share a large
    part gives every dimension a high score; subtract the mean of the embeddings before.

    Args:
        activations: Shape (n, d), signed or not, as they are.
        embeddings: Shape (n, e), of the same samples by an *independent* encoder; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active.

    Returns:
        Shape (d,), numbers in [-1, 1], float64, on the CPU. NaN for a dimension that is active on no row, or
        has no pair of rows above its least activation. With NaN or infinity in either input every number is NaN.

    Raises:
        ValueError: If the numbers of rows differ, a row of `embeddings` is zero, or `eps` is not positive.

    Reference:
        Pach et al., Sparse autoencoders learn monosemantic features in vision-language models (NeurIPS 2025). The
        released code loops over all pairs.

    Example:
        >>> monosemanticity([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0], [1.0, 0.0]])
        tensor([1., 0.], dtype=torch.float64)
    """
    metric = StreamingMonosemanticity(eps=eps)
    metric.update(activations, embeddings)
    return metric.compute()


class StreamingMonosemanticity(ByActivity):
    r"""`monosemanticity` of rows that come part by part, in one pass and O(d e) memory.

    Sums are of :math:`a_{nj} - \min_n a_{nj}`. Where a part brings a smaller least activation, the sums move with it:
    only non-negative terms are added, so that nothing cancels.

    Attributes:
        least: Shape (d,), the least activation.
        total: Shape (d,), the sum of activations above it.
        squares: Shape (d,), the sum of their squares.
        products: Shape (d, e), the sum of embeddings of length one, weighted by them.
        direction: Shape (e,), the sum of embeddings of length one.
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingMonosemanticity()
        >>> metric.update([[1.0, 1.0]], [[0.0, 3.0]])
        >>> metric.update([[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])
        >>> metric.compute()
        tensor([1., 0.], dtype=torch.float64)
    """

    sums = ("least", "total", "squares", "products", "direction", "active_rows")
    least: Tensor
    total: Tensor
    squares: Tensor
    products: Tensor
    direction: Tensor
    active_rows: Tensor

    @torch.no_grad()
    def update(self, activations: ArrayLike, embeddings: ArrayLike) -> None:
        """Take in rows (n, d) and the embeddings (n, e) of the same samples."""
        x, e = same_samples("activations", activations, "embeddings", embeddings)
        part = self._part(x, e)
        if part.finite:
            refuse_zero_rows("embeddings", e)
            part.least, part.active_rows = x.amin(dim=0).cpu().double(), active_rows(x, self.eps)
            for a, u in doubles(x, e):
                part._take(a - part.least.to(a.device), unit_rows(u))
        self.merge(part)

    def _take(self, above: Tensor, unit: Tensor) -> None:
        """Add rows: activations above the least, and embeddings of length one."""
        self.total = self.total + above.sum(dim=0).cpu()
        self.squares = self.squares + above.square().sum(dim=0).cpu()
        self.products = self.products + (above.mT @ unit).cpu()
        self.direction = self.direction + unit.sum(dim=0).cpu()

    def _add(self, other: Self) -> None:
        least = torch.minimum(self.least, other.least)
        self._lower(least)
        lowered = copy.copy(other)
        lowered._lower(least)
        super()._add(lowered)
        self.least = least

    def _lower(self, least: Tensor) -> None:
        """Sums above a smaller least activation."""
        by = self.least - least
        self.squares = self.squares + 2 * by * self.total + self.rows * by.square()
        self.total = self.total + self.rows * by
        self.products = self.products + by[:, None] * self.direction
        self.least = least

    def compute(self) -> Tensor:
        """The scores of all rows seen."""
        if not self._known():
            return self._unknown()
        pairs = self.total.square() - self.squares
        alike = self.products.square().sum(dim=1) - self.squares
        return torch.where((pairs > 0) & (self.active_rows > 0), alike / pairs, torch.nan)
