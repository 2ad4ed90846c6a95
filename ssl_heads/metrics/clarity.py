"""Clarity: whether the samples that activate a dimension are alike in the eyes of another encoder."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, same_samples, whole
from ssl_heads.metrics._rows import EPS, active, doubles, refuse_zero_rows, sum_of, unit_rows
from ssl_heads.metrics.streaming import ByActivity


class Clarity(NamedTuple):
    """The result of `clarity`.

    Attributes:
        mean: Mean of `per_dimension` over the counted dimensions; NaN if none is counted.
        baseline: Mean cosine of any two samples, the clarity of a dimension that is active everywhere; NaN for one.
        per_dimension: Shape (d,), float64, on the CPU; NaN for a dimension that is not counted.
        support: Shape (d,), int64, on the CPU: the number of samples on which a dimension is active.
    """

    mean: float
    baseline: float
    per_dimension: Tensor
    support: Tensor


def clarity(activations: ArrayLike, embeddings: ArrayLike, *, eps: float = EPS, min_support: int = 2) -> Clarity:
    r"""Mean cosine of the samples that activate a dimension.

    .. math::
        \mathrm{clarity}_j = \frac{1}{m (m - 1)} \sum_{n \ne k \in S_j} \cos(e_n, e_k)
        = \frac{\lVert \sum_{n \in S_j} e_n \rVert^2 - m}{m (m - 1)}, \qquad
        S_j = \{n : |q_{nj}| > \varepsilon\}, \quad m = |S_j|

    with the rows of e of length one and :math:`q_n = a_n / \lVert a_n \rVert_2`. The second form needs no pair. What a
    dimension tells is its distance from `baseline`, the same mean over the whole data.

    Args:
        activations: Shape (n, d), signed or not; rows are normalised here. Pass `activations.clamp(min=0)` to count
            positive activations only.
        embeddings: Shape (n, e), of the same samples by an *independent* encoder; rows are normalised here.
        eps: Magnitude of a normalised entry above which a dimension is active; the paper takes 1e-3.
        min_support: Least support of a counted dimension, at least 2.

    Returns:
        With NaN or infinity in either input every number is NaN, and the support -1.

    Raises:
        ValueError: If the numbers of rows differ, a row of `embeddings` is zero, `eps` is not positive or `min_support`
            is below 2.

    Reference:
        Sparse CLIP (ICLR 2026, arXiv 2601.20075), equation 2; after Dreyer et al., Mechanistic understanding and
        validation of large AI models with SemanticLens (2025).

    Example:
        >>> found = clarity([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0], [1.0, 0.0]])
        >>> found.per_dimension, round(found.baseline, 4)
        (tensor([1., 0.], dtype=torch.float64), 0.3333)
    """
    metric = StreamingClarity(eps=eps, min_support=min_support)
    metric.update(activations, embeddings)
    return metric.compute()


class StreamingClarity(ByActivity):
    """`clarity` of rows that come part by part, in O(d e) memory.

    Args:
        eps: Magnitude of a normalised entry above which a dimension is active.
        min_support: Least support of a counted dimension, at least 2.

    Attributes:
        direction_of: Shape (d, e), the sum of embeddings of length one over the rows that activate a dimension.
        direction: Shape (e,), their sum over all rows.
        active_rows: Shape (d,), the rows on which a dimension is active.

    Example:
        >>> metric = StreamingClarity()
        >>> metric.update([[1.0, 1.0]], [[0.0, 3.0]])
        >>> metric.update([[2.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]])
        >>> metric.compute().per_dimension
        tensor([1., 0.], dtype=torch.float64)
    """

    settings = ("eps", "min_support")
    sums = ("direction_of", "direction", "active_rows")
    direction_of: Tensor
    direction: Tensor
    active_rows: Tensor

    def __init__(self, *, eps: float = EPS, min_support: int = 2) -> None:
        self.min_support = whole("min_support", min_support, least=2)
        super().__init__(eps=eps)

    @torch.no_grad()
    def update(self, activations: ArrayLike, embeddings: ArrayLike) -> None:
        """Take in rows (n, d) and the embeddings (n, e) of the same samples."""
        x, e = same_samples("activations", activations, "embeddings", embeddings)
        part = self._part(x, e)
        if part.finite:
            refuse_zero_rows("embeddings", e)
            fires = active(x, self.eps)
            part.active_rows = sum_of(fires)
            for a, u in doubles(fires, e):
                unit = unit_rows(u)
                part.direction_of = part.direction_of + (a.mT @ unit).cpu()
                part.direction = part.direction + unit.sum(dim=0).cpu()
        self.merge(part)

    def compute(self) -> Clarity:
        """The numbers of all rows seen."""
        if not self._known():
            return Clarity(math.nan, math.nan, self._unknown(), self._unknown(-1))
        cosine = _mean_cosine(self.direction_of, self.active_rows)
        cosine = cosine.masked_fill(self.active_rows < self.min_support, math.nan)
        baseline = _mean_cosine(self.direction, self.rows.double())
        return Clarity(float(cosine.nanmean()), float(baseline), cosine, self.active_rows.long())


def _mean_cosine(total: Tensor, count: Tensor) -> Tensor:
    """The mean cosine of two different rows of length one, from their sum (..., e) and number (...); NaN for one."""
    return ((total.square().sum(dim=-1) - count) / (count * (count - 1))).where(count > 1, math.nan)
