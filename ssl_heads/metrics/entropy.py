"""Semantic entropy: over how many classes a dimension is spread."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ssl_heads._check import choice
from ssl_heads.metrics._inputs import ArrayLike, labelled, labelled_part
from ssl_heads.metrics._rows import EPS, sum_by_class, unit_rows
from ssl_heads.metrics.streaming import ByClass, class_index

EntropyKind = Literal["sum", "mean", "frequency"]


class SemanticEntropy(NamedTuple):
    """The result of `semantic_entropy`.

    Attributes:
        mean: Mean of `per_dimension` over the dimensions that are active on some row; NaN if none is.
        per_dimension: Shape (d,), in nats, float64, on the CPU; NaN for a dimension that is active on no row.
    """

    mean: float
    per_dimension: Tensor


def semantic_entropy(
    features: ArrayLike, labels: ArrayLike, kind: EntropyKind = "sum", *, eps: float = EPS
) -> SemanticEntropy:
    r"""Entropy, in nats, of how a dimension's activation is spread over the classes.

    .. math:: H_j = -\sum_c p_{cj} \log p_{cj}, \qquad p_{cj} = w_{cj} / \sum_b w_{bj}

    ===============  ===================================================================================
    `kind`           :math:`w_{cj}`
    ===============  ===================================================================================
    ``"sum"``        the sum of :math:`|q_{ij}|` over the rows i of class c
    ``"mean"``       their mean: large classes weigh no more than small ones
    ``"frequency"``  the number of rows of class c on which the dimension is active
    ===============  ===================================================================================

    0 for a dimension of one class, log C for one that all C classes share equally. A dimension that is active on few
    rows has a low entropy by chance.

    Args:
        features: Shape (n, d), signed or not; rows are normalised here. With NaN or infinity every number is NaN.
        labels: Shape (n,), classes 0, 1, ...; rows with -1 have no label and are left out.
        kind: ``"sum"``, ``"mean"`` or ``"frequency"``.
        eps: Magnitude of a normalised entry above which a dimension is active; the others count as zero.

    Raises:
        ValueError: If shapes or labels do not fit, `kind` is unknown, or `eps` is not positive.

    Reference:
        BayesNCL (ICML 2026), the released code's three variants; the published tables do not say which they show.

    Example:
        >>> semantic_entropy(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)).mean
        0.0
    """
    metric = StreamingSemanticEntropy(kind, eps=eps)
    metric.update(*labelled("features", features, "labels", labels))
    return metric.compute()


class StreamingSemanticEntropy(ByClass):
    """`semantic_entropy` of rows that come part by part.

    Args:
        kind: ``"sum"``, ``"mean"`` or ``"frequency"``.
        eps: Magnitude of a normalised entry above which a dimension is active; the others count as zero.

    Attributes:
        weight: Shape (c, d), the activation of each class, or for ``"frequency"`` its active rows.

    Example:
        >>> metric = StreamingSemanticEntropy("frequency")
        >>> metric.update([[1.0], [2.0]], [0, 0])
        >>> metric.update([[3.0], [4.0]], [1, 1])
        >>> round(metric.compute().mean / torch.tensor(2.0).log().item(), 4)
        1.0
    """

    settings = ("eps", "kind")
    per_class = ("class_rows", "weight")
    weight: Tensor

    def __init__(self, kind: EntropyKind = "sum", *, eps: float = EPS) -> None:
        choice("kind", kind, get_args(EntropyKind))
        self.kind = kind
        super().__init__(eps=eps)

    @torch.no_grad()
    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Take in rows (n, d) and their classes (n,)."""
        x, y = labelled_part(features, labels)
        part = self._part(x)
        if part.finite:
            part.classes, which, part.class_rows = class_index(y)
            q = unit_rows(x).abs()
            weight = (q > self.eps).float() if self.kind == "frequency" else q.where(q > self.eps, 0.0)
            part.weight = sum_by_class(weight, which, len(part.classes))
        self.merge(part)

    def compute(self) -> SemanticEntropy:
        """The numbers of all rows seen."""
        if not self._known():
            return SemanticEntropy(math.nan, self._unknown())
        weight = self.weight / self.class_rows[:, None] if self.kind == "mean" else self.weight
        share = weight / weight.sum(dim=0)
        entropy = -torch.xlogy(share, share).sum(dim=0) + 0.0  # no negative zero
        return SemanticEntropy(float(entropy.nanmean()), entropy)
