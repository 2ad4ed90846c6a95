"""Class consistency: whether a dimension fires for one class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads.metrics._inputs import ArrayLike, labelled, labelled_part, whole
from ssl_heads.metrics._rows import EPS, active, sum_by_class
from ssl_heads.metrics.chance import expected_modal_share
from ssl_heads.metrics.streaming import ByClass, class_index


class ClassConsistency(NamedTuple):
    """The result of `class_consistency`.

    Attributes:
        mean: Mean of `per_dimension` over the counted dimensions, the papers' number; NaN if none is counted.
        weighted_mean: The same, each dimension weighted by its support.
        chance_corrected: Mean of (consistency - chance) / (1 - chance): 0 for labels at random, 1 for one class.
        per_dimension: Shape (d,), float64, on the CPU; NaN for a dimension that is not counted.
        support: Shape (d,), int64, on the CPU: the number of samples on which a dimension is active.
        ceiling: Shape (d,), float64, on the CPU: min(1, n_c / support), with n_c the samples of the modal class. No
            dimension of this support can be more consistent; NaN for a dimension that is not counted.
        modal_class: Shape (d,), int64, on the CPU: the most frequent class, the smallest of equals; -1 for a dimension
            that is not counted.
    """

    mean: float
    weighted_mean: float
    chance_corrected: float
    per_dimension: Tensor
    support: Tensor
    ceiling: Tensor
    modal_class: Tensor


@torch.no_grad()
def class_consistency(
    features: ArrayLike, labels: ArrayLike, *, eps: float = EPS, min_support: int = 1
) -> ClassConsistency:
    r"""Share of the most frequent class among the samples that activate a dimension.

    .. math::
        S_j = \{i : |q_{ij}| > \varepsilon\}, \qquad
        c_j = \max_c \frac{|\{i \in S_j : y_i = c\}|}{|S_j|}, \qquad q_i = f_i / \lVert f_i \rVert_2

    Three things distort it. A dimension active on a handful of samples scores high by chance: with 100 classes, 1.00,
    0.50, 0.22 and 0.04 for 1, 2, 5 and 100 samples. So look at `chance_corrected`, at `weighted_mean`, or set a
    `min_support` such as max(30, n / 1000). A dimension active on more samples than its class has cannot reach one: the
    plain number measures support first, so report `per_dimension / ceiling` beside it. And signed dense features are
    active everywhere, so that each dimension scores the share of the largest class; pass `features.clamp(min=0)` to
    count positive activations only, a different number.

    A dimension's chance is the expected share of the most frequent class among `support` samples drawn without
    replacement from these labels. Where it is one (support 1, or a single class) the corrected value is 0: there is no
    evidence.

    Args:
        features: Shape (n, d); rows are normalised here. With NaN or infinity every number is NaN, and the support -1.
        labels: Shape (n,), classes 0, 1, ...; rows with -1 have no label and are left out.
        eps: Magnitude of a normalised entry above which a dimension is active.
        min_support: Least support of a counted dimension, at least 1.

    Raises:
        ValueError: If shapes or labels do not fit, `eps` is not positive or `min_support` is below 1.

    Reference:
        Non-negative Contrastive Learning (ICLR 2024), section 5; the released code's |.| test.

    Example:
        >>> class_consistency(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2)).mean
        1.0
    """
    metric = StreamingClassConsistency(eps=eps, min_support=min_support)
    metric.update(*labelled("features", features, "labels", labels))
    return metric.compute()


class StreamingClassConsistency(ByClass):
    """`class_consistency` of rows that come part by part.

    Args:
        eps: Magnitude of a normalised entry above which a dimension is active.
        min_support: Least support of a counted dimension, at least 1.

    Attributes:
        counts: Shape (c, d), the rows of each class on which a dimension is active.

    Example:
        >>> metric = StreamingClassConsistency()
        >>> for label in range(4):
        ...     metric.update(torch.eye(4)[[label, label]], [label, label])
        >>> metric.compute().mean
        1.0
    """

    settings = ("eps", "min_support")
    per_class = ("class_rows", "counts")
    counts: Tensor

    def __init__(self, *, eps: float = EPS, min_support: int = 1) -> None:
        self.min_support = whole("min_support", min_support, least=1)
        super().__init__(eps=eps)

    @torch.no_grad()
    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Take in rows (n, d) and their classes (n,)."""
        x, y = labelled_part(features, labels)
        part = self._part(x)
        if part.finite:
            part.classes, which, part.class_rows = class_index(y)
            part.counts = sum_by_class(active(x, self.eps), which, len(part.classes))
        self.merge(part)

    def compute(self) -> ClassConsistency:
        """The numbers of all rows seen."""
        if not self._known():
            unknown, none = self._unknown(), self._unknown(-1)
            return ClassConsistency(math.nan, math.nan, math.nan, unknown, none, unknown, none)
        support, modal = self.counts.sum(dim=0), self.counts.argmax(dim=0)
        share, ceiling = self.counts.amax(dim=0) / support, (self.class_rows[modal] / support).clamp_max(1.0)
        counted = support >= self.min_support
        kept, weight = share[counted], support[counted]
        chance = self._chance(weight)
        corrected = torch.where(chance < 1, (kept - chance) / (1 - chance), 0.0)
        return ClassConsistency(
            mean=float(kept.mean()),
            weighted_mean=float((kept * weight).sum() / weight.sum()),
            chance_corrected=float(corrected.mean()),
            per_dimension=share.masked_fill(~counted, math.nan),
            support=support.long(),
            ceiling=ceiling.masked_fill(~counted, math.nan),
            modal_class=self.classes[modal].masked_fill(~counted, -1),
        )

    def _chance(self, support: Tensor) -> Tensor:
        """The modal share of as many samples drawn from the labels seen."""
        labels = torch.arange(len(self.classes), device="cpu").repeat_interleave(self.class_rows.long())
        return expected_modal_share(labels, support.long())
