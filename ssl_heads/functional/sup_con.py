"""Supervised contrastive loss: the classes say which rows belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ssl_heads import _check, distributed
from ssl_heads._numerics import product_dtype
from ssl_heads.distributed import Gather, Pairs, Shard
from ssl_heads.functional._softmax import against_negatives, cosine_bound, inverse, row_dots, unit_rows
from ssl_heads.functional.groups import counted, group_index, group_sizes
from ssl_heads.similarity import IMPLS, Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MultiPositive = Literal["out", "in"]
MULTI_POSITIVES = get_args(MultiPositive)


def sup_con(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    multi_positive: MultiPositive = "out",
    gather: Gather = "none",
    group: ProcessGroup | None = None,
    impl: Impl = "auto",
) -> Tensor:
    r"""Supervised contrastive loss: all other rows of the class are positives.

    .. math::
        \text{out:} \quad \frac{1}{|P(i)|}\sum_{p \in P(i)} -\log\frac{e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}
        \qquad
        \text{in:} \quad -\log\frac{\sum_{p \in P(i)} e^{S_{ip}}}{\sum_{j \ne i} e^{S_{ij}}}

    averaged over the rows that have a positive, with :math:`S` the cosines over the temperature.

    Args:
        embeddings: Shape (n, d); the rows are divided by their length.
        labels: Integers of shape (n,); -1 is no label, and such a row has no positive and is a negative of all. Any
            other integer names a class: give -1 for the -100 of torch's cross entropy.
        temperature: Divides the cosines.
        multi_positive: ``"out"`` averages the positives outside the logarithm (the SupCon paper's choice), ``"in"``
            sums them inside it (what SimCLR forks compute when labels are passed as indexes). ``"in"`` keeps its
            relative accuracy as it approaches 0; ``"out"`` is a difference, accurate to about 1e-7 in float32.
        gather, group: Whose rows are compared, see `ssl_heads.distributed`.
        impl: How the similarity matrix is reduced, see `ssl_heads.similarity.Impl`.

    Returns:
        A scalar in float32 (float64 for float64 inputs). Where no row has a positive it is 0, still part of the graph.

    Raises:
        ValueError: If shapes do not fit, the batch is empty, the temperature is not above 0 or a choice is unknown.

    Example:
        >>> import torch
        >>> from ssl_heads.functional import sup_con
        >>> round(sup_con(torch.eye(4), torch.tensor([0, 0, 1, 1]), temperature=1.0).item(), 4)
        1.0986
    """

    def checked() -> tuple[float | Tensor, Tensor]:
        _check.rows("embeddings", embeddings)
        integers = _check.integers("labels", labels, len(embeddings), "embeddings", embeddings)
        _check.choice("multi_positive", multi_positive, MULTI_POSITIVES)
        _check.choice("impl", impl, IMPLS)
        return inverse(_check.positive("temperature", temperature)), integers

    facts = {"call": "sup_con", "temperature": temperature, "multi_positive": multi_positive, "impl": impl}
    shard, (scale, labels) = Shard.of(gather, group, {"embeddings": embeddings}, facts, checked)
    u = unit_rows(embeddings, normalize=True, impl=impl)
    classes = group_index(shard.gathered(labels))
    others = group_sizes(classes) - 1
    row_losses = _positives_outside if multi_positive == "out" else _positives_inside
    loss = row_losses(u, classes, others[shard.own], scale, shard, product_dtype(embeddings), impl)
    return shard.ddp_sum(counted(loss, others[shard.own] > 0)) / (others > 0).sum().clamp_min(1)


def _positives_outside(
    u: Tensor,
    classes: Tensor,
    others: Tensor,
    scale: float | Tensor,
    shard: Shard,
    dtype: torch.dtype,
    impl: Impl,
) -> Tensor:
    """The mean positive logit is a row dot with the class's sum, so only the denominator needs the matrix."""
    bound = cosine_bound(scale, normalize=True)
    class_sum = distributed.class_sum(u, classes, shard)
    log_sum = distributed.self_log_sum_exp(u, scale, Pairs(shard), bound=bound, dtype=dtype, impl=impl)
    return log_sum - row_dots(u, class_sum - u) / others.clamp_min(1) * scale


def _positives_inside(
    u: Tensor,
    classes: Tensor,
    others: Tensor,
    scale: float | Tensor,
    shard: Shard,
    dtype: torch.dtype,
    impl: Impl,
) -> Tensor:
    """Two log-sum-exps: over the rows of other classes, and over the other rows of the class."""
    bound = cosine_bound(scale, normalize=True)
    different, same = Pairs(shard, classes), Pairs(shard, classes, keep_equal=True)
    negative, positive = (
        distributed.self_log_sum_exp(u, scale, pairs, bound=bound, dtype=dtype, impl=impl)
        for pairs in (different, same)
    )
    # A row without a positive gets itself as one: `counted` drops its loss, and a NaN stays visible.
    return against_negatives(negative, torch.where(others > 0, positive, row_dots(u, u)))
