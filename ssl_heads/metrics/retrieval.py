"""Retrieval: whether the nearest rows are of the same class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, finite, labelled, labelled_part, whole
from ssl_heads.metrics._rows import unit_rows
from ssl_heads.metrics.neighbours import MAX_SIMILARITIES
from ssl_heads.metrics.streaming import KeepsRows


class Retrieval(NamedTuple):
    """The result of `retrieval`, each a mean over queries; NaN without a query.

    Attributes:
        precision: Share of the k nearest rows that are of the query's class, precision@k.
        map: Mean average precision, mAP@k.
        recall: Share of the other rows of the query's class that are among the k nearest, recall@k.
    """

    precision: float
    map: float
    recall: float


def retrieval(features: ArrayLike, labels: ArrayLike, k: int = 10) -> Retrieval:
    r"""Precision, mean average precision and recall of the k rows with the highest cosine similarity.

    .. math::
        \mathrm{P}_i = \frac1k \sum_{r \le k} h_{ir}, \qquad
        \mathrm{AP}_i = \frac{1}{\min(k, R_i)} \sum_{r \le k} h_{ir} \frac{\sum_{s \le r} h_{is}}{r}, \qquad
        \mathrm{R}_i = \frac{1}{R_i} \sum_{r \le k} h_{ir}

    with :math:`h_{ir}` whether the r-th nearest row of row i has its class, and :math:`R_i` the number of other rows of
    that class. A row is never its own neighbour, by its index: duplicates and zero rows change nothing. Rows that are
    equally near come in their order. A row whose class has no other row is no query, and stays among the others.

    What the papers' code prints as mAP@10 is precision@10.

    Args:
        features: Shape (n, d). With NaN or infinity every number is NaN.
        labels: Shape (n,), classes 0, 1, ...; rows with -1 have no label and are left out.
        k: Number of neighbours, below n.

    Raises:
        ValueError: If shapes or labels do not fit, or `k` is not in 1 to n - 1.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), image retrieval; tri-factor contrast (NeurIPS 2023).

    Example:
        >>> retrieval([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 1.0]], [0, 0, 1, 1], k=1)
        Retrieval(precision=1.0, map=1.0, recall=1.0)
    """
    x, y = labelled("features", features, "labels", labels)
    k = _neighbours(k, x)
    return _retrieval(unit_rows(x), y, k) if finite(x) else Retrieval(math.nan, math.nan, math.nan)


class StreamingRetrieval(KeepsRows):
    """`retrieval` of rows that come part by part; all rows are kept, because each may be near to each.

    Args:
        k: Number of neighbours, below n.

    Attributes:
        features: The parts, shape (n, d) each, rows of length one.
        labels: The parts, shape (n,) each.

    Example:
        >>> metric = StreamingRetrieval(k=1)
        >>> metric.update([[1.0, 0.0], [2.0, 0.1]], [0, 0])
        >>> metric.update([[0.0, 1.0], [0.1, 1.0]], [1, 1])
        >>> metric.compute()
        Retrieval(precision=1.0, map=1.0, recall=1.0)
    """

    settings = ("k",)
    kept = ("features", "labels")
    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def __init__(self, k: int = 10) -> None:
        self.k = whole("k", k, least=1)
        super().__init__()

    @torch.no_grad()
    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Take in rows (n, d) and their classes (n,)."""
        x, y = labelled_part(features, labels)
        part = self._part(x)
        part.features, part.labels = (unit_rows(x).cpu(),), (y.cpu(),)
        self.merge(part)

    def compute(self) -> Retrieval:
        """The numbers of all rows seen."""
        if not self._known():
            return Retrieval(math.nan, math.nan, math.nan)
        x = torch.cat(self.features)
        return _retrieval(x, torch.cat(self.labels), _neighbours(self.k, x))


def _neighbours(k: int, x: Tensor) -> int:
    if not 1 <= whole("k", k) < len(x):
        raise ValueError(f"k must lie between 1 and the {len(x) - 1} other rows, got {k}")
    return k


@torch.no_grad()
def _retrieval(unit: Tensor, y: Tensor, k: int) -> Retrieval:
    """Of rows of length one, a chunk of queries against all rows at a time."""
    _, which, of_class = torch.unique(y, return_inverse=True, return_counts=True)
    others = of_class[which] - 1
    place = torch.arange(1, k + 1, device="cpu")
    totals = torch.zeros(3, dtype=torch.float64, device="cpu")
    with torch.autocast(unit.device.type, enabled=False):  # half precision would change the neighbours
        for rows in torch.split((others > 0).nonzero()[:, 0], max(MAX_SIMILARITIES // len(unit), 1)):
            similarity = unit[rows] @ unit.T
            similarity.scatter_(1, rows[:, None], -math.inf)
            hits, relevant = (y[nearest(similarity, k)] == y[rows, None]).cpu().double(), others[rows].cpu()
            found, precision = hits.sum(dim=1), hits.cumsum(dim=1) / place
            average = (precision * hits).sum(dim=1) / relevant.clamp_max(k)
            totals += torch.stack([found / k, average, found / relevant]).sum(dim=1)
    precision, average, recall = (totals / int((others > 0).sum())).tolist()
    return Retrieval(precision, average, recall)


def nearest(similarity: Tensor, k: int) -> Tensor:
    """Columns of the k largest entries of each row, the largest first; equal entries in the order of their columns.

    A row is sorted as a whole only where entries outside of the k equal the last of them.

    Example:
        >>> nearest(torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]]), 3)
        tensor([[1, 3, 2]])
    """
    values, columns = similarity.topk(k, dim=1)
    crowded = (similarity >= values[:, -1:]).sum(dim=1) > k
    columns[crowded] = similarity[crowded].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    return columns.gather(1, similarity.gather(1, columns).sort(dim=1, descending=True, stable=True).indices)
