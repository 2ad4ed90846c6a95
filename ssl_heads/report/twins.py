"""The same dimension in the embeddings of another seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_heads._samples import strongest_and_spread
from ssl_heads.metrics._inputs import ArrayLike, as_matrix, refuse_rows_that_are_not_finite
from ssl_heads.metrics._optional import optional
from ssl_heads.metrics._rows import unit_rows

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
    match, correlation = _matched(correlations(z, w))
    shuffled = w[torch.randperm(len(w), generator=torch.Generator("cpu").manual_seed(0), device="cpu")]
    chance = _matched(correlations(z, shuffled))[1].abs()
    alive = correlation != 0
    partners = w[:, match.clamp_min(0)] * torch.where(correlation < 0, -1.0, 1.0).to(w)
    partners[:, match < 0] = 0.0
    strongest, _ = strongest_and_spread(partners, count, 0, eps)
    return Twins(match, correlation, strongest, float(chance[alive].mean()) if bool(alive.any()) else 0.0)


def correlations(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of every dimension of normalised rows of one with every one of the other: (p, q)."""
    n, width = len(a), a.shape[1]
    total = torch.zeros(width + b.shape[1], dtype=torch.float64, device="cpu")
    squares, cross = torch.zeros_like(total), torch.zeros(width, b.shape[1], dtype=torch.float64, device="cpu")
    # the products of float32 columns lose less after a common shift
    shift = torch.cat([unit_rows(a[:BLOCK]), unit_rows(b[:BLOCK]).to(a)], dim=1).mean(dim=0)
    for x, y in zip(torch.split(a, BLOCK), torch.split(b, BLOCK), strict=True):
        q = torch.cat([unit_rows(x), unit_rows(y).to(x)], dim=1) - shift
        total += q.sum(dim=0).cpu()
        squares += q.square().sum(dim=0).cpu()
        cross += (q[:, :width].T @ q[:, width:]).cpu()
    mean = total / n
    variance = squares / n - mean.square()
    varies = variance > 1e-12
    scale = torch.where(varies, variance.clamp_min(1e-12).rsqrt(), 0.0)
    return (cross / n - mean[:width, None] * mean[width:]) * scale[:width, None] * scale[width:]


def _matched(table: Tensor) -> tuple[Tensor, Tensor]:
    optimize = optional("scipy.optimize", "scipy", "the search for the same dimension in another seed")
    rows, columns = (torch.from_numpy(x) for x in optimize.linear_sum_assignment(table.abs().numpy(), maximize=True))
    match = torch.full(table.shape[:1], -1, device="cpu")
    match[rows] = columns
    return match, torch.where(match >= 0, table.gather(1, match.clamp_min(0)[:, None])[:, 0], 0.0).clamp(-1.0, 1.0)
