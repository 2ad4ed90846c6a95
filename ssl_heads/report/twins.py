"""The same dimension in the embeddings of another seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._samples import strongest_and_spread
from ssl_heads.metrics._inputs import ArrayLike, as_matrix, refuse_rows_that_are_not_finite
from ssl_heads.metrics._rows import unit_rows
from ssl_heads.metrics.stability import StreamingSeedStability

BLOCK = 4096
SAME = 0.7  # the correlation above which a dimension counts as the same


class Twins(NamedTuple):
    """The partner of each dimension, one to one.

    Attributes:
        match: Shape (d,), the dimension of the other embedding; -1 where none was left.
        correlation: Shape (d,), of the two over the samples, signed; 0 for none.
        strongest: Shape (d, k), the samples on which the partner is strongest; -1 for none.
        by_chance: Mean absolute correlation that the same search finds after the other's rows are shuffled.
    """

    match: Tensor
    correlation: Tensor
    strongest: Tensor
    by_chance: float


def twins(z: Tensor, other: ArrayLike, count: int, eps: float) -> Twins:
    """Match the dimensions of two embeddings of the same samples so that absolute correlations sum to the most."""
    w = as_matrix("other_seed", other)
    if len(w) != len(z):
        raise ValueError(
            f"other_seed must hold the same samples as embeddings, row by row; got {len(w)} and {len(z)} rows"
        )
    refuse_rows_that_are_not_finite("other_seed", w)
    match, correlation = partners(z, w)
    shuffled = w[torch.randperm(len(w), generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(w.device)]
    _, by_chance = partners(z, shuffled)
    returned = w[:, match.clamp_min(0)] * torch.where(correlation < 0, -1.0, 1.0).to(w)
    returned[:, match < 0] = 0.0
    strongest, _ = strongest_and_spread(returned, count, 0, eps)
    chance = by_chance[match >= 0].abs()
    return Twins(match, correlation, strongest, float(chance.mean()) if len(chance) else 0.0)


def partners(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The partner (p,) of each dimension of normalised rows, -1 for none, and their signed correlations, 0 for none."""
    metric = StreamingSeedStability(threshold=SAME)
    for x, y in zip(torch.split(a, BLOCK), torch.split(b, BLOCK), strict=True):
        metric.update(unit_rows(x), unit_rows(y))
    found = metric.compute()
    sign = metric.products.gather(1, found.order.clamp_min(0)[:, None])[:, 0].sign()
    return found.order, torch.where(found.order >= 0, found.per_dimension * sign, 0.0)
