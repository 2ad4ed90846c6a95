"""Class consistency: whether a dimension fires for one class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._check import positive
from ssl_heads.metrics._inputs import ArrayLike, finite, labelled, whole
from ssl_heads.metrics._rows import EPS, active
from ssl_heads.metrics.chance import expected_modal_share


class ClassConsistency(NamedTuple):
    """The result of `class_consistency`.

    Attributes:
        mean: Mean of `per_dimension` over the counted dimensions, the papers' number; NaN if none is counted.
        weighted_mean: The same, each dimension weighted by its support.
        chance_corrected: Mean of (consistency - chance) / (1 - chance): 0 for labels at random, 1 for one class.
        per_dimension: Shape (d,), float64, on the CPU; NaN for a dimension that is not counted.
        support: Shape (d,), int64, on the CPU: the number of samples on which a dimension is active.
    """

    mean: float
    weighted_mean: float
    chance_corrected: float
    per_dimension: Tensor
    support: Tensor


@torch.no_grad()
def class_consistency(
    features: ArrayLike, labels: ArrayLike, *, eps: float = EPS, min_support: int = 1
) -> ClassConsistency:
    r"""Share of the most frequent class among the samples that activate a dimension.

    .. math::
        S_j = \{i : |q_{ij}| > \varepsilon\}, \qquad
        c_j = \max_c \frac{|\{i \in S_j : y_i = c\}|}{|S_j|}, \qquad q_i = f_i / \lVert f_i \rVert_2

    Two things distort it. A dimension active on a handful of samples scores high by chance: with 100 classes, 1.00,
    0.50, 0.22 and 0.04 for 1, 2, 5 and 100 samples. So look at `chance_corrected`, at `weighted_mean`, or set a
    `min_support` such as max(30, n / 1000). And signed dense features are active everywhere, so that each dimension
    scores the share of the largest class; pass `features.clamp(min=0)` to count positive activations only, a
    different number.

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
    x, y = labelled("features", features, "labels", labels)
    positive("eps", eps)
    min_support = whole("min_support", min_support, least=1)
    if not finite(x):
        unknown = torch.full(x.shape[1:], math.nan, dtype=torch.float64, device="cpu")
        return ClassConsistency(math.nan, math.nan, math.nan, unknown, torch.full_like(unknown, -1, dtype=torch.int64))
    classes, y = torch.unique(y, return_inverse=True)
    counts = torch.zeros(len(classes), x.shape[1], dtype=torch.int64, device=x.device)
    counts = counts.index_add_(0, y, active(x, eps).long()).cpu()

    support = counts.sum(dim=0)
    share = counts.amax(dim=0).double() / support
    counted = support >= min_support
    kept, weight = share[counted], support[counted].double()
    sizes, which = torch.unique(support[counted], return_inverse=True)
    chance = expected_modal_share(y, sizes)[which]
    corrected = torch.where(chance < 1, (kept - chance) / (1 - chance), 0.0)
    return ClassConsistency(
        mean=float(kept.mean()),
        weighted_mean=float((kept * weight).sum() / weight.sum()),
        chance_corrected=float(corrected.mean()),
        per_dimension=share.masked_fill(~counted, math.nan),
        support=support,
    )
